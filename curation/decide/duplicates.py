"""Near-duplicate clips, found by perceptual hashes of frames and by loudness curves.

Clips are cut by one deterministic encoder, so equal frames and audio give equal files whatever the source container.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import InputError, MissingFileError
from common.media.audio import read_audio
from common.media.index import probe
from common.media.video import read_frames
from common.runs import atomic_write
from common.untrusted.lists import read_table
from curation.config import DuplicatesConfig

Row = dict[str, Any]

FRAMES = 3
# Consecutive bits of an image hash, or of rises and falls of the loudness, that form one LSH key: two clips are
# compared only when they share a key.
BAND_BITS = 16
MOST_COMPARED = 500  # neighbours compared under one key; a key with more clips (black frames) is not informative
AUDIO_KEYS = 1 << 16  # first band number of audio keys, above those of image keys
LOUDNESS_STEP = 0.1  # seconds
QUIET_DB = -60.0
FINGERPRINT = ("unit", "cut_sha256", "duration", "hashes", "loudness")


def fingerprint_clip(file: Path) -> dict[str, Any]:
    """`hashes` of the frames at one, three and five sixths of a clip (16 hex digits each) and its `loudness` curve."""
    count = probe(file).frames
    positions = [count * (2 * number + 1) // (2 * FRAMES) for number in range(FRAMES)]
    hashes = [f"{image_hash(frame):016x}" for frame in read_frames(file, positions)]
    return {"hashes": hashes, "loudness": loudness_curve(read_audio(file))}


def image_hash(frame: np.ndarray) -> int:
    """64-bit perceptual hash (pHash) of an RGB image (H, W, 3): signs of its 8x8 lowest cosine terms against their
    median."""
    small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first term is the mean brightness
    return int("".join("1" if bit else "0" for bit in bits), 2)


def loudness_curve(wave: np.ndarray, rate: int = 16_000) -> list[int]:
    """Level in dB of full scale, no lower than -60, of each 0.1 s of mono audio (n,)."""
    step = round(LOUDNESS_STEP * rate)
    blocks = wave[: len(wave) // step * step].reshape(-1, step).astype(np.float64)
    return (
        np.rint(10 * np.log10(np.maximum(np.square(blocks).mean(axis=1), 10 ** (QUIET_DB / 10)))).astype(int).tolist()
    )


def group_duplicates(config: DuplicatesConfig, rows: Sequence[Row]) -> list[str | None]:
    """For each row the clip_id of the first row of its duplicate group; None for a row without duplicates.

    Rows need unit, duration, hashes and loudness, and are taken in the order given. Files with equal bytes have
    equal fingerprints and so form a group.
    """
    durations = np.array([row["duration"] for row in rows], float)
    hashes = _hash_table(rows)
    keys, owners = _keys(rows, hashes)
    # Each pair is encoded as later * n + earlier: np.unique removes repeats and sorts by the later row, then the
    # earlier.
    codes = [
        np.unique((late * len(rows) + early)[_near(config, hashes, early, late)])
        for early, late in _sharing(keys, owners, durations, config.max_seconds_apart)
    ]
    # Visited in this order, the head of an earlier row is final when a later row joins its group.
    first_of: dict[int, int] = {}
    for code in np.unique(np.concatenate([np.zeros(0, int), *codes])).tolist():
        late, early = divmod(code, len(rows))
        if late not in first_of and _same_audio(config, rows[early], rows[late]):
            first_of[late] = first_of.get(early, early)
    members = set(first_of.values())
    return [
        rows[first_of[number]]["unit"] if number in first_of else row["unit"] if number in members else None
        for number, row in enumerate(rows)
    ]


def _hash_table(rows: Sequence[Row]) -> np.ndarray:
    """Image hashes (rows, 3) uint64."""
    return np.array([[int(digits, 16) for digits in row["hashes"]] for row in rows], np.uint64).reshape(-1, FRAMES)


def _keys(rows: Sequence[Row], hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LSH keys (k,) uint64 and the row (k,) that each belongs to, from bands of the image hashes and of the audio.

    A key is (band number << 16) + 16 bits. Image bands are numbered 0 to 11: three hashes of four bands each. Audio
    bands start at AUDIO_KEYS: band i holds the signs of the loudness differences 16 i to 16 i + 15.
    """
    bands = hashes.view(np.uint16).astype(np.uint64)
    keys = [(np.arange(bands.shape[1], dtype=np.uint64) << np.uint64(BAND_BITS)) + bands]
    owners = [np.repeat(np.arange(len(rows)), bands.shape[1])]
    for number, row in enumerate(rows):
        rises = np.diff(row["loudness"]) > 0
        whole = rises[: len(rises) // BAND_BITS * BAND_BITS].reshape(-1, BAND_BITS)
        # A band without any rise (silence) is not informative.
        band = np.flatnonzero(whole.any(axis=1)).astype(np.uint64)
        bits = np.packbits(whole, axis=1).view(np.uint16).ravel()[band.astype(int)].astype(np.uint64)
        keys.append((band + np.uint64(AUDIO_KEYS) << np.uint64(BAND_BITS)) + bits)
        owners.append(np.full(len(band), number))
    return np.concatenate([key.ravel() for key in keys]), np.concatenate(owners)


def _sharing(
    keys: np.ndarray, owners: np.ndarray, durations: np.ndarray, apart: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of pairs of rows (earlier, later) that share a key and whose lengths are at most `apart` s apart.

    Step n compares each key entry with the n-th one after it, in one vectorised pass. Work grows with the number of
    pairs and is bounded by MOST_COMPARED, memory grows with the number of keys.
    """
    order = np.lexsort((durations[owners], keys))
    keys, owners = keys[order], owners[order]
    lengths = durations[owners]
    alive = np.arange(len(keys))
    for step in range(1, min(len(keys), MOST_COMPARED)):
        alive = alive[alive + step < len(keys)]
        other = alive + step
        # Sorted by length within a key: an entry whose n-th neighbour is too far is done, as later ones are farther.
        alive = alive[(keys[alive] == keys[other]) & (lengths[other] - lengths[alive] <= apart + 1e-9)]
        if not len(alive):
            return
        pair = np.sort(np.stack([owners[alive], owners[alive + step]]), axis=0)
        pair = pair[:, pair[0] != pair[1]]
        yield pair[0], pair[1]


def _near(config: DuplicatesConfig, hashes: np.ndarray, early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Mask (pairs,): whether the image hashes differ in few enough bits."""
    return np.bitwise_count(hashes[early] ^ hashes[late]).sum(axis=1) <= config.max_different_bits


def _same_audio(config: DuplicatesConfig, first: Row, second: Row) -> bool:
    length = min(len(first["loudness"]), len(second["loudness"]))
    curves = np.array([first["loudness"][:length], second["loudness"][:length]], float)
    if not length or np.ptp(curves, axis=1).min() == 0:  # silence or a steady tone has no shape to correlate
        return bool(np.abs(curves[0] - curves[1]).max(initial=0) <= 1)
    return bool(np.corrcoef(curves)[0, 1] >= config.min_audio_correlation)


def find_overlaps(config: DuplicatesConfig, rows: Sequence[Row], references: Sequence[Row]) -> list[str | None]:
    """For each row the `unit` of a reference clip (a test set's) with common content, however both were cut.

    Rows and references need unit, cut_sha256, hashes and loudness. A row overlaps when the bytes are equal, or one of
    its frames looks like one of the reference's and their loudness curves agree over `min_overlap` s at some shift.
    Every frame is compared with every reference: 3 ms for a reference and 100,000 rows.
    """
    copies = {row["cut_sha256"]: row["unit"] for row in reversed(references)}
    found = [copies.get(row["cut_sha256"]) for row in rows]
    hashes = _hash_table(rows)
    for reference, own in zip(references, _hash_table(references), strict=True):
        different = np.min([np.bitwise_count(hashes ^ one).min(axis=1, initial=64) for one in own], axis=0)
        for number in np.flatnonzero(different <= config.max_overlap_bits).tolist():
            if found[number] is None:
                agreement = best_overlap(reference["loudness"], rows[number]["loudness"], config.min_overlap)
                if agreement >= config.min_overlap_correlation:
                    found[number] = reference["unit"]
    return found


def best_overlap(first: Sequence[int], second: Sequence[int], seconds: float) -> float:
    """Highest correlation of two loudness curves over all shifts at which at least `seconds` of both coincide; -1 where
    there is none."""
    least = max(2, round(seconds / LOUDNESS_STEP))
    a, b = np.asarray(first, float), np.asarray(second, float)
    if min(len(a), len(b)) < least:
        return -1.0

    def over_shifts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.rint(np.correlate(first, second, "full"))  # sums of products of whole numbers

    # Pearson correlation at every shift at once: correlating with ones gives the sums over the overlapping parts.
    ones_a, ones_b = np.ones_like(a), np.ones_like(b)
    count = over_shifts(ones_a, ones_b)
    sum_a, sum_b = over_shifts(a, ones_b), over_shifts(ones_a, b)
    spread_a = count * over_shifts(a * a, ones_b) - sum_a**2
    spread_b = count * over_shifts(ones_a, b * b) - sum_b**2
    valid = (count >= least) & (spread_a > 0) & (spread_b > 0)
    together = count * over_shifts(a, b) - sum_a * sum_b
    return float((together[valid] / np.sqrt(spread_a[valid] * spread_b[valid])).max(initial=-1.0))


def write_fingerprints(path: Path, rows: Sequence[Row]) -> None:
    """Write the fingerprints of clips as JSON lines, one clip a line, to be excluded from other sets."""
    with atomic_write(path) as temporary:
        lines = (json.dumps({name: row[name] for name in FINGERPRINT}) for row in rows)
        temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_fingerprints(path: Path) -> list[Row]:
    """Read the file of `write_fingerprints`. Raises FileNotFoundError, and ValueError for a line that is no
    fingerprint."""
    if not path.is_file():
        raise MissingFileError(f"There are no fingerprints at {path}; give a file written by write_fingerprints.")
    rows = []
    for number, values, error in read_table(path):
        if error or (missing := [name for name in FINGERPRINT if name not in values]):
            why = error or f"it has no {missing[0]}"
            raise InputError(f"{path}, line {number}: expected an object with {', '.join(FINGERPRINT)}; {why}.")
        rows.append({name: values[name] for name in FINGERPRINT})
    return rows
