"""START HERE: the curation job, sources -> clips.parquet and clip files. Stages add fields, `select` alone decides.

sources -> probe -> scan -> [clips] -> cut -> speech -> sync -> quality -> captions, duplicates -> select
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.clips import CLIP_SCHEMA, read_clips, write_clips
from common.executors import ExecutorConfig, Stage, run_stage
from common.ledger import Ledger
from common.progress import progress
from common.runs import RunFolder, fingerprint, hash_path, plain, sha256_file
from curation.captions import CaptionConfig, caption_fields
from curation.cut import CutConfig, clip_rows, cut_row, cut_stage
from curation.duplicates import DuplicatesConfig, group_duplicates
from curation.people import PeopleConfig, find_tracks, people_fields
from curation.probe import probe_stage
from curation.quality import QualityConfig, quality_stage
from curation.scan import ScanConfig, scan_stage
from curation.select import SelectConfig, select
from curation.sources import SourcesConfig, list_sources
from curation.speech import speech_stage
from curation.summary import CurationSummary, summarise, write_sources
from curation.sync import SyncConfig, sync_stage

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Models = Mapping[str, Path | None]

ROLES = ("face_detector", "sync_scorer", "quality_scorer")


@dataclass(frozen=True)
class CurationConfig:
    """The recipe's `curation:` section: one object per stage, each beside the code that reads it."""

    scan: ScanConfig = ScanConfig()
    cut: CutConfig = CutConfig()
    people: PeopleConfig = PeopleConfig()
    sync: SyncConfig = SyncConfig()
    quality: QualityConfig = QualityConfig()
    captions: CaptionConfig = CaptionConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    select: SelectConfig = SelectConfig()


def curate(
    config: CurationConfig, sources: SourcesConfig, models: Models, run: RunFolder, executor: ExecutorConfig
) -> CurationSummary:
    """Bring every source through every stage and write clips.parquet, sources.parquet and the clip files.

    Model roles: face_detector (else OpenCV's cascade), sync_scorer, quality_scorer; a scorer that is absent leaves its
    clips pending. Killed and run again it goes on, and ends in the same bytes. Raises FileNotFoundError or SourcesError
    for the sources, StageError for weights that do not load, DiskFullError.
    """
    work = _Work(Ledger(run.ledger), executor)
    listed = list_sources(sources)
    probed = work.do(probe_stage(), listed)
    pack = models.get("face_detector")
    scanned = work.do(scan_stage(config.scan, pack, _hash(pack)), probed)
    clips = [clip | caption_fields(config.captions, row) for row in scanned for clip in clip_rows(config.cut, row)]
    long_enough = [clip for clip in clips if clip["duration"] >= config.cut.min_seconds]
    _score(config, models, work, run.clips, long_enough)
    run_id = fingerprint([plain(config), {role: _hash(models.get(role)) for role in ROLES}])
    for clip in clips:
        clip |= {"run_id": run_id, "stage_versions": work.versions} | select(config.select, clip)
    _restore_files(run, clips)
    write_sources(run, listed, clips)
    write_clips(run.clips_parquet, [{name: clip.get(name) for name in CLIP_SCHEMA.names} for clip in clips])
    return summarise(run)


def reselect(config: SelectConfig, run: RunFolder) -> CurationSummary:
    """Decide again over the stored scores of a finished run, with other thresholds and nothing computed anew.

    Raises FileNotFoundError before the first `curate`.
    """
    rows = read_clips(run.clips_parquet)
    write_clips(run.clips_parquet, [row | select(config, row) for row in rows])
    return summarise(run)


@dataclass
class _Work:
    """Runs stages and writes their outputs into the rows; remembers the fingerprint of each stage."""

    ledger: Ledger
    executor: ExecutorConfig
    versions: dict[str, str] = field(default_factory=dict)

    def do(self, stage: Stage, rows: Sequence[Row]) -> list[Row]:
        """Bring rows through one stage; returns those that went well, in order."""
        self.versions[stage.name] = stage.fingerprint
        outcomes = run_stage(stage, rows, self.ledger, self.executor)
        for row, outcome in zip(rows, outcomes, strict=True):
            row |= outcome.outputs
            if outcome.state != "kept":
                reason = f"failed {stage.name}" if outcome.state == "failed" else outcome.reason
                row |= {"decision": outcome.state, "reasons": [reason], "message": outcome.message}
        return [row for row, outcome in zip(rows, outcomes, strict=True) if outcome.state == "kept"]


def _score(config: CurationConfig, models: Models, work: _Work, folder: Path, clips: Sequence[Row]) -> None:
    """Cut the clips and fill in their fields; a stage whose weights are absent is left out."""
    cut = work.do(cut_stage(folder), clips)
    for clip in cut:
        clip |= {"cut_sha256": clip["sha256"], "bytes_uri": f"{folder.name}/{clip['unit']}.mp4"}
        if not (folder / f"{clip['unit']}.mp4").exists():  # lost since it was recorded
            cut_row(folder, clip)
        clip |= people_fields(find_tracks(config.people, clip), clip)
    alive = work.do(speech_stage(), cut)
    if model := models.get("sync_scorer"):
        alive = work.do(sync_stage(config.sync, config.people, folder, model, _hash(model)), alive)
    if model := models.get("quality_scorer"):
        alive = work.do(quality_stage(config.quality, folder, model, _hash(model)), alive)
    for clip, group in zip(alive, group_duplicates(config.duplicates, alive), strict=True):
        clip["dup_group"] = group


def _hash(path: Path | None) -> str:
    return hash_path(path) if path else ""


def _restore_files(run: RunFolder, clips: Sequence[Row]) -> None:
    """Make the clip files what the table says: write lost or outdated ones again, remove those of older cuts."""
    known = {clip["clip_id"] for clip in clips if clip.get("sha256")}
    for file in run.clips.glob("*.mp4"):
        if file.stem not in known:
            file.unlink()
    for clip in progress([clip for clip in clips if clip["clip_id"] in known], "verify clips"):
        file = run.clips / f"{clip['clip_id']}.mp4"
        if not file.exists() or sha256_file(file) != clip["sha256"]:
            logger.info("%s is not as recorded and is cut again", file.name)
            cut_row(run.clips, clip, clip.get("sync_offset_applied") or 0)
