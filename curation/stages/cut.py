"""Cut stage: shots into clips of bounded length, each its own 25 fps file with 16 kHz audio."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.executors.stage import Stage, no_effect
from common.ledger.store import Outcome
from common.media.index import probe
from common.media.open import MediaError
from common.media.video import cut_clip
from common.runs import sha256_file
from curation.decide.fingerprints import fingerprint_clip
from curation.rows import ClipRow
from curation.stages.shots import FRAME, RULE_VERSION


@dataclass(frozen=True)
class CutStage(Stage[ClipRow]):
    """Over clip rows: writes `<folder>/<clip_id>.mp4`. Outputs: sha256 of that file and its fingerprint for finding
    duplicates (hashes, loudness)."""

    name = "cut"
    version = RULE_VERSION
    reads = ("unit", "source_sha256", "t_start", "t_end", "crop", "size")
    reads_if_set = ("presentation",)
    folder: Path = no_effect()

    def __call__(self, row: ClipRow) -> Outcome:
        """Cut one clip; rejected as `cut_row` says."""
        outcome = cut_row(self.folder, row)
        if outcome.state != "kept":
            return outcome
        return replace(outcome, outputs=outcome.outputs | fingerprint_clip(self.folder / f"{row['unit']}.mp4"))

    def products(self, row: ClipRow, outcome: Outcome) -> Mapping[Path, int | None]:
        """The clip file; its bytes are checked against the table at the end of the job."""
        return {self.folder / f"{row['unit']}.mp4": None}


def cut_row(folder: Path, row: Mapping[str, Any], shift: int = 0) -> Outcome:
    """Write one clip file, its audio delayed by `shift` frames.

    Rejected as truncated, unreadable or no_audio when the source cannot be decoded there, and as bad_crop when the
    data set's crop exceeds the frame.
    """
    target = folder / f"{row['unit']}.mp4"
    crop, size = row.get("crop"), row.get("size")
    try:
        if crop:
            seen = probe(row["path"])
            if min(crop) < 0 or crop[0] + crop[2] > seen.width or crop[1] + crop[3] > seen.height or 0 in crop[2:]:
                message = f"{row['path']}: the crop {crop} does not lie inside {seen.width}x{seen.height}."
                return Outcome(row["unit"], "rejected", "bad_crop", message)
        cut_clip(row["path"], target, row["t_start"], row["t_end"], shift * FRAME, crop=crop, size=size)
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    return Outcome(row["unit"], "kept", outputs={"sha256": sha256_file(target)})
