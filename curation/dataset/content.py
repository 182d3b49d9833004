"""What a clip file shows and sounds like, as one hash: the same for files that differ in their containers alone."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.video import decode_stored
from common.runs import sha256_file


def hash_content(file: Path) -> str:
    """SHA-256 of a file's decoded frames as they are stored, then of its sound as 16-bit samples at 16 kHz. Raises
    MediaError."""
    digest = hashlib.sha256()
    for frame in decode_stored(file):
        digest.update(np.ascontiguousarray(frame.to_ndarray()).tobytes())
    digest.update(np.rint(np.clip(read_audio(file), -1, 1) * 32767).astype("<i2").tobytes())
    return digest.hexdigest()


def content_stage(folder: Path) -> Stage:
    """The stage over rows with `unit` and `sha256` that hashes `<folder>/<unit>.mp4`; its output is content_sha256. A
    file whose bytes are not of that sha256 stays pending: when it is there again, it is taken."""
    return Stage("content", "1", {}, {}, partial(_make, folder), reads=("unit", "sha256"))


def _make(folder: Path) -> Callable[[Mapping[str, Any]], Outcome]:
    return partial(_hash, folder)


def _hash(folder: Path, row: Mapping[str, Any]) -> Outcome:
    file = folder / f"{row['unit']}.mp4"
    if not file.exists() or sha256_file(file) != row["sha256"]:
        message = f"{file} is not the file of the clip table; run the curation job again, which writes it anew."
        return Outcome(row["unit"], "pending", "not_as_recorded", message)
    return Outcome(row["unit"], "kept", outputs={"content_sha256": hash_content(file)})
