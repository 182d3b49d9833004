"""Near-duplicate clips: banded search over perceptual hashes, then a comparison of image bits and loudness curves.

The tables stay in DuckDB; of each clip 56 bytes are held while pairs are searched for (`Prints`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curation.config import DuplicatesConfig
from curation.decide.fingerprints import FRAMES, LOUDNESS_STEP
from curation.decide.groups import first_of_group

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

# Clips are compared when they share a key: two of the eight bytes of a 64-bit hash. All hashes that differ in at most
# six bits share one of the 28 keys, 97 % of those that differ in seven, 90 % in eight.
KEYS = tuple(combinations(range(8), 2))
# Neighbours, by length, compared under one key: a key with more (black frames) says little, other keys decide.
MOST_COMPARED = 500
FLAT_DB = 2  # a curve that varies less has no shape to hash
FADE_STEPS = 8  # at the end of a curve, over which its weight in the hash falls
AUDIO_STEPS = 600  # of a curve that its hash sees: the first minute
# Curves that correlate by 0.97 differ in 5 of 64 signs, by other lengths in 7; unrelated ones in 32 +- 4.
MOST_AUDIO_BITS = 20
LENGTH_BITS, ROW_BITS = 20, 28
SEARCH_MEMORY = "256MB"  # of DuckDB, which holds on to it while the arrays are searched
BATCH = 16_384  # clips whose curves are hashed at once
CHUNK = 1 << 18  # pairs compared at once
REFERENCES = 10_000  # compared with all clips at a time, 7 KB each
OVERLAP = pa.schema([("clip_id", pa.string()), ("test_overlap", pa.string())])


@dataclass(frozen=True)
class Prints:
    """Fingerprints of n clips: `clips` their ids, `hashes` (n, 4) uint64 of three frames and of the audio, `flat` (n,)
    whether the audio has no shape, `ms` (n,) int64 lengths, `curves` (n,) uint64 equal for equal loudness."""

    clips: pa.ChunkedArray
    hashes: np.ndarray
    flat: np.ndarray
    ms: np.ndarray
    curves: np.ndarray


def group_duplicates(config: DuplicatesConfig, connection: "duckdb.DuckDBPyConnection", table: str) -> pa.Table:
    """clip_id and dup_group of the clips that show the same as another one: the clip_id of the first of their group, by
    video, start and id.

    `table` has clip_id, video_id, t_start, duration, hashes and loudness. Two clips are copies as `DuplicatesConfig`
    says, a chain of copies is one group. Files with equal bytes have equal fingerprints and so form a group.
    """
    connection.execute(f"SET memory_limit = '{SEARCH_MEMORY}'")
    prints = read_prints(connection, table)
    pairs = _with_same_audio(config, connection, table, prints, find_pairs(config, prints))
    first = first_of_group(len(prints.ms), pairs)
    members = np.unique(pairs)
    return pa.table({"clip_id": prints.clips.take(members), "dup_group": prints.clips.take(first[members])})


def read_prints(connection: "duckdb.DuckDBPyConnection", table: str) -> Prints:
    """The fingerprints of all rows of `table`, by video, start and id of the clip."""
    digits = ", ".join(f"('0x' || hashes[{frame + 1}])::UBIGINT AS h{frame}" for frame in range(FRAMES))
    ordered = connection.sql(
        f"""SELECT clip_id, {digits}, round(duration * 1000)::BIGINT AS ms, hash(loudness) AS curve,
            loudness[:{AUDIO_STEPS}]::TINYINT[] AS loudness FROM {table} ORDER BY video_id, t_start, clip_id"""
    )
    ((count,),) = connection.sql(f"SELECT count(*) FROM {table}").fetchall()
    hashes, flat = np.empty((count, FRAMES + 1), np.uint64), np.empty(count, bool)
    ms, curves = np.empty(count, np.int64), np.empty(count, np.uint64)
    clips: list[pa.Array] = []
    begin = 0
    for batch in ordered.to_arrow_reader(BATCH):
        # Copied: what is part of a batch keeps all of it in memory.
        clips.append(batch["clip_id"].take(pa.array(np.arange(len(batch)))))
        rows = slice(begin, begin := begin + len(batch))
        for frame in range(FRAMES):
            hashes[rows, frame] = batch[f"h{frame}"].to_numpy()
        hashes[rows, FRAMES], flat[rows] = hash_curves(batch["loudness"])
        ms[rows], curves[rows] = batch["ms"].to_numpy(), batch["curve"].to_numpy()
    return Prints(pa.chunked_array(clips, pa.string()), hashes, flat, ms, curves)


def hash_curves(curves: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hashes (n,) uint64 of loudness curves, and which are flat (n,): signs of random projections of the curve
    about its mean, which differ in as many bits as two curves differ in direction. That of a flat one is 0."""
    lengths = curves.value_lengths().to_numpy(zero_copy_only=False)
    values = curves.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    steps = max(int(lengths.max(initial=0)), 1)
    # Drawn row by row, so that a longer batch begins with the same projections.
    projections = np.random.default_rng(0).standard_normal((steps, 64)).astype(np.float32)
    place = np.arange(steps) < lengths[:, None]
    grid = np.full(place.shape, np.nan, np.float32)
    grid[place] = values
    low, high = (np.nan_to_num(limit(grid, axis=1, where=place, initial=start))
                 for limit, start in ((np.min, np.inf), (np.max, -np.inf)))  # fmt: skip
    flat = (lengths == 0) | (high - low <= FLAT_DB)
    # Faded out, so that what one of two curves has more at its end does not turn the direction.
    weight = np.clip((lengths[:, None] - np.arange(steps)) / FADE_STEPS, 0, 1).astype(np.float32)
    mean = np.sum(grid * weight, axis=1, where=place) / np.maximum(weight.sum(axis=1), 1e-9)
    signs = np.where(place, (grid - mean[:, None]) * weight, 0) @ projections > 0
    return np.where(flat, 0, np.packbits(signs, axis=1).view(np.uint64).ravel()).astype(np.uint64), flat


def find_pairs(config: DuplicatesConfig, prints: Prints) -> np.ndarray:
    """Pairs (m, 2) of clips, the earlier first, of about equal length whose image hashes differ in few enough bits and
    whose audio hashes do not rule out that they sound alike.

    One key at a time: the clips are sorted by key and length, and each is compared with those that follow within
    `max_seconds_apart`. Time grows with the number of clips that share a key, memory with that of the clips.
    """
    kept, found = _collapse(prints)
    hashes, ms = prints.hashes[kept], prints.ms[kept]
    images, audio = (np.ascontiguousarray(each) for each in (hashes[:, :FRAMES], hashes[:, FRAMES]))
    length = np.minimum(ms, (1 << LENGTH_BITS) - 1).astype(np.uint64)
    placed = (length << np.uint64(ROW_BITS)) | np.arange(len(kept), dtype=np.uint64)
    left_out = 0
    for column in range(hashes.shape[1]):
        # Copies sound alike: the images of clips with silence alone need keys, and the hash of silence says nothing.
        keyed = np.flatnonzero(prints.flat[kept] != (column == FRAMES))
        shared = np.ascontiguousarray(hashes[keyed, column]).view(np.uint8).reshape(-1, 8).astype(np.uint64)
        codes = [np.zeros(0, np.int64)]
        for one, two in KEYS:
            key = (shared[:, one] << np.uint64(8)) | shared[:, two]
            ordered = np.sort((key << np.uint64(LENGTH_BITS + ROW_BITS)) | placed[keyed])
            left_out += _compare_neighbours(config, ordered, images, audio, ms, codes)
        found.append(kept[np.stack(np.divmod(np.unique(np.concatenate(codes)), len(kept)), axis=1)])
    if left_out:
        logger.info("near duplicates: %d times a clip had more than %d neighbours under a key", left_out, MOST_COMPARED)
    return np.unique(np.concatenate(found), axis=0)


def _collapse(prints: Prints) -> tuple[np.ndarray, list[np.ndarray]]:
    """The first clip of each fingerprint, and pairs of it with the others of that fingerprint."""
    order = np.lexsort((np.arange(len(prints.ms)), prints.ms, prints.curves, *prints.hashes.T))
    same = np.zeros(len(order), bool)
    same[1:] = True
    for column in (prints.ms, prints.curves, *prints.hashes.T):
        same[1:] &= column[order[1:]] == column[order[:-1]]
    head = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    return np.sort(order[~same]), [np.stack([head[same], order[same]], axis=1)]


def _compare_neighbours(
    config: DuplicatesConfig,
    ordered: np.ndarray,
    images: np.ndarray,
    audio: np.ndarray,
    ms: np.ndarray,
    codes: list[np.ndarray],
) -> int:
    """Append to `codes` the pairs that are alike among clips given as key, length and row in one number, `ordered`
    (k,) uint64, each as earlier * n + later; returns how many clips had more neighbours than are compared."""
    place = ordered >> np.uint64(ROW_BITS)  # key and length
    row = (ordered & np.uint64((1 << ROW_BITS) - 1)).view(np.int64)
    frames = [images[row, number] for number in range(FRAMES)]
    apart = round(1000 * config.max_seconds_apart)
    alive = np.flatnonzero(place[1:] - place[:-1] <= apart)
    for step in range(1, MOST_COMPARED + 1):
        for begin in range(0, len(alive), CHUNK):
            some = alive[begin : begin + CHUNK]
            first, last = int(some[0]), int(some[-1]) + 1
            if 4 * len(some) > last - first:  # nearly all: cheaper without picking them
                bits = sum(np.bitwise_count(each[first:last] ^ each[first + step : last + step]) for each in frames)
                bits = bits[some - first]
            else:
                bits = sum(np.bitwise_count(each[some] ^ each[some + step]) for each in frames)
            some = some[bits <= config.max_different_bits]
            pair = np.sort(np.stack([row[some], row[some + step]]), axis=0)
            near = np.bitwise_count(audio[pair[0]] ^ audio[pair[1]]) <= MOST_AUDIO_BITS
            # Lengths once more: what follows the longest clips under a key has another key.
            near &= np.abs(ms[pair[0]] - ms[pair[1]]) <= apart
            codes.append(pair[0, near] * len(ms) + pair[1, near])
        # Sorted by length: whose n-th neighbour is too far is done, as later ones are farther.
        alive = alive[: np.searchsorted(alive, len(place) - step - 1)]
        alive = alive[place[alive + step + 1] - place[alive] <= apart]
        if not len(alive):
            break
    return len(alive)


def _with_same_audio(
    config: DuplicatesConfig,
    connection: "duckdb.DuckDBPyConnection",
    table: str,
    prints: Prints,
    pairs: np.ndarray,
) -> np.ndarray:
    """Those of the pairs whose loudness curves correlate."""
    involved = np.unique(pairs)
    connection.register(
        "involved", pa.table({"clip_id": prints.clips.take(involved), "place": np.arange(len(involved))})
    )
    curves = (
        connection.sql(
            f"SELECT loudness::TINYINT[] AS loudness FROM {table} JOIN involved USING (clip_id) ORDER BY place"
        )
        .to_arrow_table()["loudness"]
        .combine_chunks()
    )
    connection.unregister("involved")
    starts = np.concatenate([[0], np.cumsum(curves.value_lengths().to_numpy(zero_copy_only=False))]).astype(int)
    values = curves.flatten().to_numpy(zero_copy_only=False)
    places = np.searchsorted(involved, pairs)
    same = [same_audio(config, values, starts, places[begin : begin + BATCH]) for begin in range(0, len(pairs), BATCH)]
    return pairs[np.concatenate([np.zeros(0, bool), *same])]


def same_audio(config: DuplicatesConfig, values: np.ndarray, starts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Mask (m,) of pairs (m, 2) of loudness curves, of which number i is `values[starts[i]:starts[i + 1]]`: whether
    they correlate over the length that both have."""
    length = np.diff(starts)[pairs].min(axis=1)
    within = np.arange(length.max(initial=0)) < length[:, None]
    one, two = (
        np.where(within, values[np.where(within, starts[of][:, None] + np.arange(within.shape[1]), 0)], 0).astype(float)
        for of in pairs.T
    )
    apart = np.abs(one - two).max(axis=1, initial=0)
    ranges = [np.max(each, axis=1, where=within, initial=-np.inf) - np.min(each, axis=1, where=within, initial=np.inf)
              for each in (one, two)]  # fmt: skip
    # Pearson's correlation times n^2, from sums of whole numbers, which are exact.
    total_one, total_two = one.sum(axis=1), two.sum(axis=1)
    spread = (length * (one * one).sum(axis=1) - total_one**2) * (length * (two * two).sum(axis=1) - total_two**2)
    together = length * (one * two).sum(axis=1) - total_one * total_two
    # Silence or a steady tone has no shape to correlate.
    shapeless = np.minimum(*ranges) <= 0
    correlated = together >= config.min_audio_correlation * np.sqrt(np.maximum(spread, 0))
    return np.where(shapeless, apart <= 1, correlated)


def find_overlaps(
    config: DuplicatesConfig, connection: "duckdb.DuckDBPyConnection", table: str, references: Sequence[Mapping]
) -> pa.Table:
    """clip_id and test_overlap of the clips with content of a reference clip (a test set's), however both were cut: the
    reference's `unit`.

    `table` has clip_id, cut_sha256, hashes and loudness, references have the fields of `FINGERPRINT`. A clip overlaps
    when the bytes are equal, or one of its frames looks like one of the reference's and their loudness curves agree
    over `min_overlap` s at some shift. Frames are compared when a quarter of their hashes differs in at most two bits:
    so it is wherever at most eleven of 64 differ, and in 97 % of those that differ in twelve.
    """
    copies = {row["cut_sha256"]: row["unit"] for row in reversed(references)}
    frames = ", ".join(f"('0x' || hashes[{frame + 1}])::UBIGINT AS h{frame}" for frame in range(FRAMES))
    sql = f"SELECT clip_id, cut_sha256, {frames}, loudness FROM {table}"
    found: dict[str, str] = {}
    for begin in range(0, len(references), REFERENCES):
        some = references[begin : begin + REFERENCES]
        looks = np.array([[int(digits, 16) for digits in row["hashes"]] for row in some], np.uint64)
        shelves = [shelve(keys) for keys in quarters(looks)]
        for batch in connection.sql(sql).to_arrow_reader(BATCH):
            clips = batch["clip_id"].to_pylist()
            for clip, digest in zip(clips, batch["cut_sha256"].to_pylist(), strict=True):
                if digest in copies:
                    found[clip] = copies[digest]
            hashes = np.stack([batch[f"h{frame}"].to_numpy() for frame in range(FRAMES)], axis=1)
            # By reference, so that a clip gets the first of those that it overlaps.
            for number, clip in look_alike(config.max_overlap_bits, looks, shelves, hashes):
                if clips[clip] not in found:
                    curve = batch["loudness"][clip].as_py()
                    best = best_overlap(some[number]["loudness"], curve, config.min_overlap)
                    if best >= config.min_overlap_correlation:
                        found[clips[clip]] = some[number]["unit"]
    return pa.table([list(found), list(found.values())], OVERLAP)


def quarters(hashes: np.ndarray) -> np.ndarray:
    """The four quarters of hashes of any shape, (4, n) uint16."""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, 4).T


def shelve(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of keys (n,) uint16, and of those that differ in one or two bits, sorted by key; and where in them
    each key begins, (2^16 + 1,)."""
    changes = {1 << one | 1 << two for one in range(16) for two in range(16)}
    near = np.concatenate([keys, *(keys ^ np.uint16(change) for change in sorted(changes))])
    order = np.argsort(near, kind="stable")
    return (order % len(keys)).astype(np.int32), np.searchsorted(near[order], np.arange((1 << 16) + 1))


def look_alike(
    most_bits: int, looks: np.ndarray, shelves: Sequence[tuple[np.ndarray, np.ndarray]], hashes: np.ndarray
) -> Iterator[tuple[int, int]]:
    """(reference, clip), in this order, where one of the frames `looks` (r, frames) differs from one of `hashes`
    (n, frames) in at most `most_bits`."""
    found = [np.zeros(0, np.int64)]
    theirs, own = looks.ravel(), hashes.ravel()
    for (places, begins), keys in zip(shelves, quarters(hashes), strict=True):
        many = begins[keys.astype(np.int64) + 1] - begins[keys]
        ends = np.cumsum(many)
        for first in range(0, int(ends[-1]) if len(ends) else 0, CHUNK):
            pair = np.arange(first, min(first + CHUNK, int(ends[-1])))
            frame = np.searchsorted(ends, pair, "right")
            other = places[begins[keys[frame]] + pair - (ends - many)[frame]]
            near = np.bitwise_count(theirs[other] ^ own[frame]) <= most_bits
            found.append(np.unique((other[near] // FRAMES).astype(np.int64) * len(hashes) + frame[near] // FRAMES))
    for code in np.unique(np.concatenate(found)).tolist():
        yield divmod(code, len(hashes))


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
