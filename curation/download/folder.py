"""The folder of fetched videos: `<video id>.<suffix>`, and beside each what was said of it when it came.

A video appears there whole and checked or not at all; what is half fetched lies in a folder of its own.
"""

from pathlib import Path
from typing import Any

from common.media.index import Probe, probe
from common.media.open import MediaError
from common.runs import read_json, sha256_file, sync, write_json
from curation.download.errors import Failure, FailureClass
from curation.sources.hdtf import fit_crops
from curation.sources.listing import VIDEO_SUFFIXES
from curation.sources.remote import Row

# Sites round lengths to seconds, and a stream may end a little before the other.
LENGTH_TOLERANCE = 2.0  # seconds
LENGTH_SHARE = 0.02


class VideoFolder:
    """Where videos lie. `wanted` is all of the recipe that decides which bytes a fetched video has."""

    def __init__(self, path: Path, wanted: dict[str, Any]) -> None:
        self.path, self.wanted = path, wanted

    @property
    def parts(self) -> Path:
        """Where half-fetched videos lie."""
        return self.path / ".parts"

    def take_in(self, part: Path, row: Row, fetched: dict[str, Any]) -> dict[str, Any]:
        """Give a fetched and checked file its name in place of any other of its unit; returns its outputs."""
        file = self.path / f"{row['unit']}{part.suffix if part.suffix in VIDEO_SUFFIXES else '.mp4'}"
        digest = sha256_file(part)
        # Written first: a file without it would be taken for one that somebody put there.
        write_json(self._notes(row), {"sha256": digest, "wanted": self.wanted, "fetched": fetched})
        sync(part)
        part.replace(file)
        for other in self._files(row):
            if other != file:  # fetched with another recipe
                other.unlink()
        sync(self.path)
        return _outputs(row, file, digest, fetched)

    def outputs_here(self, row: Row) -> dict[str, Any] | None:
        """The outputs of a unit whose file is here, fetched by an earlier run or put there by hand.

        None when there is none, or one that was damaged since it came, or that was fetched with another recipe.
        """
        file = next(iter(self._files(row)), None)
        if file is None:
            return None
        digest = sha256_file(file)
        notes = read_json(self._notes(row)) if self._notes(row).exists() else None
        if notes and (notes["sha256"], notes["wanted"]) != (digest, self.wanted):
            return None
        return _outputs(row, file, digest, notes["fetched"] if notes else None)

    def _files(self, row: Row) -> list[Path]:
        files = (self.path / f"{row['unit']}{suffix}" for suffix in sorted(VIDEO_SUFFIXES))
        return [file for file in files if file.is_file()]

    def _notes(self, row: Row) -> Path:
        return self.path / f"{row['unit']}.info.json"


def check_talk(file: Path, announced: float | None) -> None:
    """Raises Failure when a file is no readable video with sound of the announced length (s, None = not announced)."""
    found = _probed(file)
    expected = announced or found.duration
    if not found.has_audio:
        raise Failure(FailureClass.POST_CHECK, f"{file.name} has no sound; expected a talking person.", "no_audio")
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
