"""Fingerprints of clips, by which copies are found: perceptual hashes of frames, loudness curves.

Clips are cut by one deterministic encoder, so equal frames and audio give equal files whatever the source container.
"""

import json
from collections.abc import Iterable, Mapping
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

FRAMES = 3
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


def write_fingerprints(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the fingerprints of clips as JSON lines, one clip a line, to be excluded from other sets."""
    with atomic_write(path) as temporary:
        lines = (json.dumps({name: row[name] for name in FINGERPRINT}) for row in rows)
        temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_fingerprints(path: Path) -> list[dict[str, Any]]:
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
