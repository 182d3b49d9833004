"""START HERE: the curation job, sources -> clips.parquet and clip files. Stages add fields, `select` alone decides.

sources -> download -> probe -> scan -> tracks -> [clips] -> cut -> scoring -> duplicates -> select
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.clips import CLIP_SCHEMA, write_clips
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage, shared_workers
from common.executors.stage import ROWS, Stage
from common.ledger.store import Ledger
from common.progress import progress
from common.query import materialise
from common.runs import RunFolder, fingerprint, hash_path, plain, sha256_file
from common.tracks import TRACKS_FILE, write_tracks
from curation.config import ROLES, CurationConfig, SourcesConfig
from curation.dataset.adopt import adopt, faces_of_clips, mark_adopted, needs_adoption
from curation.dataset.holdings import PER_FRAME
from curation.dataset.takedown import part_taken_down
from curation.decide.duplicates import find_overlaps, group_duplicates, read_fingerprints, write_fingerprints
from curation.decide.select import select
from curation.decide.split import apply_split
from curation.download.fetch import fetch_sources
from curation.reporting.summary import CurationSummary, summarise, write_sources
from curation.scoring import score_clips
from curation.sources.listing import list_sources
from curation.stages.captions import caption_fields
from curation.stages.cut import CutStage, cut_row
from curation.stages.probe import ProbeStage
from curation.stages.scan import scan_stage
from curation.stages.shots import source_fields
from curation.stages.tracks import TracksStage, track_rows

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Models = Mapping[str, Path | None]

TEST_FINGERPRINTS = "test_fingerprints.jsonl"
LARGE = 100_000  # clips from which on questions are worth a copy of the table made for them


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
    listed, gone = part_taken_down(run, list_sources(sources))
    with shared_workers():
        ledger = Ledger(run.ledger)
        adopting = needs_adoption(ledger)
        runner = StageRunner(ledger, executor, after_stage, config if adopting else None)
        clips = _split_sources(config, models, runner, run, listed)
        long_enough = [clip for clip in clips if clip["duration"] >= config.cut.min_seconds]
        cut = _cut(runner, run.clips, long_enough)
        alive = score_clips(config, models, runner.run, run.clips, run.root / PER_FRAME, cut)
    if adopting:
        mark_adopted(ledger)
    _compare(config, alive, references)
    run_id = fingerprint([plain(config), {role: _hash(models.get(role)) for role in ROLES}])
    for clip, decided in zip(clips, select(config.select, clips), strict=True):
        clip |= {"run_id": run_id, "stage_versions": runner.versions} | decided
    apply_split(config.test_list, clips)
    _restore_files(run, clips)
    write_sources(run, [*listed, *gone], clips)
    write_tracks(run.root / TRACKS_FILE, track_rows(run.root / PER_FRAME, cut))
    write_clips(run.clips_parquet, [{name: clip.get(name) for name in CLIP_SCHEMA.names} for clip in clips])
    tests = [clip for clip in clips if clip["split"] == "test" and clip["decision"] == "kept"]
    write_fingerprints(run.report / TEST_FINGERPRINTS, sorted(tests, key=lambda clip: clip["unit"]))
    if len(clips) >= LARGE:
        materialise(run.root)
    return summarise(run)


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
    scanned = runner.run(scan_stage(config.scan, models, per_frame), probed)
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


def _compare(config: CurationConfig, clips: Sequence[Row], references: Sequence[Row]) -> None:
    """Fill in which clips show the same as another one, or as a clip that must be kept out."""
    for clip, group in zip(clips, group_duplicates(config.duplicates, clips), strict=True):
        clip["dup_group"] = group
    if references:
        for clip, reference in zip(clips, find_overlaps(config.duplicates, clips, references), strict=True):
            clip["test_overlap"] = reference


def _hash(path: Path | None) -> str:
    return hash_path(path) if path else ""


def _restore_files(run: RunFolder, clips: Sequence[Row]) -> None:
    """Make the clip files what the table says: write lost or outdated ones again, remove those of older cuts."""
    expected = {clip["clip_id"] for clip in clips if clip.get("sha256")}
    for file in run.clips.glob("*.mp4"):
        if file.stem not in expected:
            file.unlink()
    for clip in progress([clip for clip in clips if clip["clip_id"] in expected], "verify clips"):
        file = run.clips / f"{clip['clip_id']}.mp4"
        if not file.exists() or sha256_file(file) != clip["sha256"]:
            logger.info("%s differs from its record and is cut again", file.name)
            cut_row(run.clips, clip, clip.get("sync_offset_applied") or 0)
