"""START HERE: the curation job, sources -> clips.parquet and clip files. Stages add fields, `select` alone decides.

sources -> download -> probe -> scan -> tracks -> [clips] -> cut -> scoring -> duplicates -> select
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage, shared_workers
from common.executors.stage import ROWS, Stage, Weights
from common.ledger.store import Ledger
from common.runs import RunFolder, fingerprint, hash_path, plain
from curation.config import ROLES, CurationConfig, SourcesConfig
from curation.dataset.adopt import adopt, faces_of_clips, mark_adopted, needs_adoption
from curation.dataset.holdings import PER_FRAME
from curation.dataset.takedown import part_taken_down
from curation.decide.fingerprints import read_fingerprints
from curation.decide.table import write_part
from curation.download.fetch import fetch_sources
from curation.reporting.summary import CurationSummary, write_source_part
from curation.scoring import score_clips
from curation.sources.listing import list_sources
from curation.stages.captions import caption_fields
from curation.stages.cut import CutStage
from curation.stages.probe import ProbeStage
from curation.stages.scan import ScanStage
from curation.stages.shots import source_fields
from curation.stages.tracks import TracksStage
from curation.tables import write_tables

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Models = Mapping[str, Path | None]


def curate(
    config: CurationConfig,
    sources: SourcesConfig,
    models: Models,
    run: RunFolder,
    executor: ExecutorConfig,
    after_stage: Callable[[], object] = lambda: None,
) -> CurationSummary:
    """Run every source through every stage and write clips.parquet, tracks.parquet, sources.parquet and the clip
    files.

    Model roles: face_detector (else OpenCV's cascade), active_speaker, sync_scorer, pose, quality_scorer, captioner; a
    scorer that is absent leaves its clips pending. Killed and run again it goes on, and ends in the same bytes.
    `after_stage` is called when a stage is done, at moments when nothing is being written. Raises
    FileNotFoundError or SourcesError for the sources, StageError for weights that do not load, DiskFullError.
    """
    references = read_fingerprints(Path(config.keep_out)) if config.keep_out else []
    usable, gone = part_taken_down(run, list_sources(sources))
    listed = list(usable)
    with shared_workers():
        ledger = Ledger(run.ledger)
        adopting = needs_adoption(ledger)
        runner = StageRunner(ledger, executor, after_stage, config if adopting else None)
        clips = _split_sources(config, models, runner, run, listed)
        long_enough = [clip for clip in clips if clip["duration"] >= config.cut.min_seconds]
        cut = _cut(runner, run.clips, long_enough)
        score_clips(config, models, runner.run, run.clips, run.root / PER_FRAME, cut)
    if adopting:
        mark_adopted(ledger)
    judged, listing = run.cache / "judged.parquet", run.cache / "listed.parquet"
    write_part(judged, clips)
    write_source_part(listing, enumerate([*listed, *gone]))
    run_id = fingerprint([plain(config), {role: _hash(models.get(role)) for role in ROLES}])
    summary = write_tables(config, run, [judged], [listing], run_id, runner.versions, references)
    judged.unlink()
    listing.unlink()
    return summary


@dataclass
class StageRunner:
    """Runs stages and writes their outputs into the rows; remembers the fingerprint of each stage.

    With `adopt_for`, the settings of the run, what an earlier version of the code recorded is adopted first.
    """

    ledger: Ledger
    executor: ExecutorConfig
    after_stage: Callable[[], object]
    adopt_for: CurationConfig | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def run(self, stage: Stage[Any], rows: Sequence[Row]) -> list[Row]:
        """Run rows through one stage; returns those that were kept, in order."""
        self.versions[stage.name] = stage.fingerprint
        if self.adopt_for is not None:
            adopt(stage, rows, self.adopt_for, self.ledger)
        outcomes = run_stage(stage, rows, self.ledger, self.executor)
        self.after_stage()
        for row, outcome in zip(rows, outcomes, strict=True):
            row |= outcome.outputs
            if outcome.state != "kept":
                reason = f"failed {stage.name}" if outcome.state == "failed" else outcome.reason
                row |= {"decision": outcome.state, "reasons": [reason], "message": outcome.message}
        return [row for row, outcome in zip(rows, outcomes, strict=True) if outcome.state == "kept"]


def _split_sources(
    config: CurationConfig, models: Models, runner: StageRunner, run: RunFolder, listed: list[Row]
) -> list[Row]:
    """Fetch, probe and scan the sources and find the faces; returns a row per clip they will be cut into."""
    folder = Path(config.download.folder).expanduser() if config.download.folder else run.cache / "videos"
    probed = runner.run(ProbeStage(), fetch_sources(config.download, listed, folder, runner.run))
    per_frame = run.root / PER_FRAME
    detector = Weights.of("face_detector", models.get("face_detector"))
    scanned = runner.run(ScanStage(config.scan, detector, per_frame), probed)
    captioner = bool(models.get("captioner"))
    clips = []
    for source in runner.run(TracksStage(config.people, config.cut, per_frame), scanned):
        shared = source_fields(source) | caption_fields(config.captions, source, captioner)  # type: ignore[arg-type]
        clips += [dict(shared | clip) for clip in source.pop(ROWS)]
    if runner.adopt_for is not None:
        faces = faces_of_clips(config, scanned, per_frame)
        for clip in clips:
            clip["faces"] = faces[clip["unit"]]
    return clips


def _cut(runner: StageRunner, folder: Path, clips: Sequence[Row]) -> list[Row]:
    """Write the clip files; returns the rows of those that could be cut, with the fields about faces."""
    cut = runner.run(CutStage(folder), clips)
    for clip in cut:
        clip |= {"cut_sha256": clip["sha256"], "bytes_uri": f"{folder.name}/{clip['unit']}.mp4"} | clip.pop("people")
    return cut


def _hash(path: Path | None) -> str:
    return hash_path(path) if path else ""
