"""Content hash of a clip file: over decoded frames and audio, independent of the container."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.executors.stage import Stage, no_effect
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.video import decode_stored
from common.runs import sha256_file


def hash_content(file: Path) -> str:
    """SHA-256 of a file's decoded frames as they are stored, then of its audio as 16-bit samples at 16 kHz. Raises
    MediaError."""
    digest = hashlib.sha256()
    for frame in decode_stored(file):
        digest.update(np.ascontiguousarray(frame.to_ndarray()).tobytes())
    digest.update(np.rint(np.clip(read_audio(file), -1, 1) * 32767).astype("<i2").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ContentStage(Stage[dict[str, Any]]):
    """Over rows with `unit` and `sha256`: hashes `<folder>/<unit>.mp4`; its output is content_sha256. A file
    with another sha256 stays pending until it is restored."""

    name = "content"
    version = "1"
    reads = ("unit", "sha256")
    folder: Path = no_effect()

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Hash one clip file. Raises MediaError."""
        file = self.folder / f"{row['unit']}.mp4"
        if not file.exists() or sha256_file(file) != row["sha256"]:
            message = f"{file} differs from the clip table; run the curation job again, which restores it."
            return Outcome(row["unit"], "pending", "not_as_recorded", message)
        return Outcome(row["unit"], "kept", outputs={"content_sha256": hash_content(file)})
