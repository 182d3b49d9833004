"""Which clips show the same thing? Exact by the bytes of the cut, near by hashes of the picture and of the sound.

Clips are cut by one deterministic encoder, so equal pictures and sound give equal files from whatever container.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.media import probe, read_audio, read_frames

FRAMES = 3
BAND_DIGITS = 4  # hex digits of a picture hash that must agree before two clips are compared at all
BAND_STEPS = 16  # or so many rises and falls of the loudness
LOUDNESS_STEP = 0.1  # seconds
QUIET_DB = -60.0


@dataclass(frozen=True)
class DuplicatesConfig:
    """Two clips are one when their lengths differ by at most `max_seconds_apart`, at most `max_different_bits` of 192
    picture bits differ and their loudness curves correlate by `min_sound_correlation`: people look alike, and sentences
    sound alike, but not both at once."""

    max_different_bits: int = 32
    min_sound_correlation: float = 0.97
    max_seconds_apart: float = 0.2


def fingerprint_clip(file: Path) -> dict[str, Any]:
    """`hashes` of the frames at one, three and five sixths of a clip (16 hex digits each) and its `loudness` curve."""
    count = probe(file).frames
    wanted = [count * (2 * number + 1) // (2 * FRAMES) for number in range(FRAMES)]
    hashes = [f"{picture_hash(frame):016x}" for frame in read_frames(file, wanted)]
    return {"hashes": hashes, "loudness": loudness_curve(read_audio(file))}


def picture_hash(frame: np.ndarray) -> int:
    """64-bit perceptual hash of an RGB picture (H, W, 3): signs of its 8x8 lowest cosine terms against their median."""
    small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the first term is the mean brightness
    return int("".join("1" if bit else "0" for bit in bits), 2)


def loudness_curve(wave: np.ndarray, rate: int = 16_000) -> list[int]:
    """Level in dB of full scale, no lower than -60, of each 0.1 s of a mono sound (n,)."""
    step = round(LOUDNESS_STEP * rate)
    blocks = wave[: len(wave) // step * step].reshape(-1, step).astype(np.float64)
    return (
        np.rint(10 * np.log10(np.maximum(np.square(blocks).mean(axis=1), 10 ** (QUIET_DB / 10)))).astype(int).tolist()
    )


def group_duplicates(config: DuplicatesConfig, rows: Sequence[dict[str, Any]]) -> list[str | None]:
    """For each row the clip_id of the first row that shows the same thing; null for a row that stands alone.

    Rows need unit, cut_sha256, duration, hashes and loudness, and are taken in the order given.
    """
    first_of: dict[int, int] = {}
    for early, late in _candidates(rows):
        if late not in first_of and _same(config, rows[early], rows[late]):
            first_of[late] = first_of.get(early, early)
    members = set(first_of.values())
    return [
        rows[first_of[number]]["unit"] if number in first_of else row["unit"] if number in members else None
        for number, row in enumerate(rows)
    ]


def _candidates(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of row numbers that share the file's bytes or one band of a hash."""
    seen: defaultdict[tuple, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        keys = list(_bands(row))
        yield from ((early, number) for early in sorted({early for key in keys for early in seen[key]}))
        for key in keys:
            seen[key].append(number)


def _bands(row: dict[str, Any]) -> Iterator[tuple]:
    """Keys under which a clip is found again: locality-sensitive hashing of picture and sound."""
    yield "file", row["cut_sha256"]
    digits = "".join(row["hashes"])
    for start in range(0, len(digits), BAND_DIGITS):
        yield "picture", start, digits[start : start + BAND_DIGITS]
    rises = np.diff(row["loudness"]) > 0
    for start in range(0, len(rises) - BAND_STEPS + 1, BAND_STEPS):
        band = rises[start : start + BAND_STEPS]
        if band.any():  # silence is like any other silence
            yield "sound", start, band.tobytes()


def _same(config: DuplicatesConfig, first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first["cut_sha256"] == second["cut_sha256"]:
        return True
    if abs(first["duration"] - second["duration"]) > config.max_seconds_apart:
        return False
    pairs = zip(first["hashes"], second["hashes"], strict=True)
    if sum((int(a, 16) ^ int(b, 16)).bit_count() for a, b in pairs) > config.max_different_bits:
        return False
    length = min(len(first["loudness"]), len(second["loudness"]))
    curves = np.array([first["loudness"][:length], second["loudness"][:length]], float)
    if np.ptp(curves, axis=1).min() == 0:  # silence or a steady tone has no shape to correlate
        return bool(np.abs(curves[0] - curves[1]).max() <= 1)
    return bool(np.corrcoef(curves)[0, 1] >= config.min_sound_correlation)
