"""Folder of downloaded videos: `<video id>.<suffix>` files, each with a JSON file of its metadata.

A video appears there complete and checked or not at all; partial downloads are in a folder of their own.
"""

from pathlib import Path
from typing import Any

from common.constants import VIDEO_SUFFIXES
from common.media.index import Probe, probe
from common.media.open import MediaError
from common.runs import sha256_file, sync, write_json
from common.untrusted.sidecars import read_sidecar
from curation.download.errors import Failure, FailureClass
from curation.sources.hdtf import fit_crops
from curation.sources.remote import Row

# Sites round lengths to seconds, and streams may end at slightly different times.
LENGTH_TOLERANCE = 2.0  # seconds
LENGTH_SHARE = 0.02


class VideoFolder:
    """The folder at `path`. `settings` are those that determine which bytes a downloaded video has."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings

    @property
    def parts(self) -> Path:
        """Folder of partial downloads."""
        return self.path / ".parts"

    def take_in(self, part: Path, row: Row, fetched: dict[str, Any]) -> dict[str, Any]:
        """Move a downloaded and checked file into place and remove older files of its unit; returns its outputs."""
        file = self.path / f"{row['unit']}{part.suffix if part.suffix in VIDEO_SUFFIXES else '.mp4'}"
        digest = sha256_file(part)
        # Written first: a video without it would count as one that a user put there.
        write_json(self._notes(row), {"sha256": digest, "wanted": self.settings, "fetched": fetched})
        sync(part)
        part.replace(file)
        for other in self._files(row):
            if other != file:  # fetched with another recipe
                other.unlink()
        sync(self.path)
        return _outputs(row, file, digest, fetched)

    def existing_outputs(self, row: Row) -> dict[str, Any] | None:
        """The outputs of a unit whose file exists, downloaded by an earlier run or put there by hand.

        None when there is none, or when it was damaged since or downloaded with other settings.
        """
        file = next(iter(self._files(row)), None)
        if file is None:
            return None
        digest = sha256_file(file)
        notes = read_sidecar(self._notes(row))
        # Of another form: a downloader's own notes beside a video that a user put there.
        notes = notes if notes.keys() >= {"sha256", "wanted", "fetched"} else {}
        if notes and (notes["sha256"], notes["wanted"]) != (digest, self.settings):
            return None
        return _outputs(row, file, digest, notes["fetched"] if notes else None)

    def _files(self, row: Row) -> list[Path]:
        files = (self.path / f"{row['unit']}{suffix}" for suffix in sorted(VIDEO_SUFFIXES))
        return [file for file in files if file.is_file()]

    def _notes(self, row: Row) -> Path:
        return self.path / f"{row['unit']}.info.json"


def check_talk(file: Path, announced: float | None) -> None:
    """Raises Failure unless the file is a readable video with audio of the announced length (s, None = unknown)."""
    found = _probed(file)
    expected = announced or found.duration
    if not found.has_audio:
        raise Failure(FailureClass.POST_CHECK, f"{file.name} has no audio; expected a talking person.", "no_audio")
    if abs(found.duration - expected) > max(LENGTH_TOLERANCE, LENGTH_SHARE * expected):
        message = f"{file.name} is {found.duration:.1f} s long; {expected:.1f} s were announced."
        raise Failure(FailureClass.POST_CHECK, message, "wrong_duration")


def _outputs(row: Row, file: Path, digest: str, fetched: dict[str, Any] | None) -> dict[str, Any]:
    outputs = {"file": file.name, "bytes": file.stat().st_size, "sha256": digest, "fetched": fetched}
    if any(segment.get("crop") for segment in row["segments"]):
        seen = _probed(file)
        outputs["segments"] = fit_crops(row["segments"], seen.width, seen.height)
    return outputs


def _probed(file: Path) -> Probe:
    try:
        return probe(file)
    except MediaError as error:
        raise Failure(FailureClass.POST_CHECK, str(error), error.kind) from error
