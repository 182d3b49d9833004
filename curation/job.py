"""START HERE: the curation job, sources -> clips.parquet and clip files. Stages add fields, `select` alone decides.

sources -> probe -> scan -> [clips] -> cut -> speech, fingerprint -> sync -> quality -> captions, duplicates -> select
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common.clips import CLIP_SCHEMA, read_clips, write_clips
from common.executors import ExecutorConfig, Stage, run_stage
from common.ledger import Ledger
from common.progress import progress
from common.runs import RunFolder, atomic_write, fingerprint, hash_path, plain, sha256_file

from curation.captions import CaptionConfig, caption_fields
from curation.cut import CutConfig, clip_rows, cut_row, cut_stage
from curation.duplicates import DuplicatesConfig, fingerprint_stage, group_duplicates
from curation.people import PeopleConfig, find_tracks, people_fields
from curation.probe import probe_stage
from curation.quality import QualityConfig, quality_stage
from curation.scan import ScanConfig, scan_stage
from curation.select import SelectConfig, select
from curation.sources import SourcesConfig, list_sources
from curation.speech import speech_stage
from curation.sync import SyncConfig, sync_stage

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Models = Mapping[str, Path | None]

ROLES = ("face_detector", "sync_scorer", "quality_scorer")
SOURCES_FILE = "sources.parquet"
SOURCES_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("source", pa.string()),
        ("row_index", pa.int64()),
        ("state", pa.string()),  # kept, rejected or failed
        ("reason", pa.string()),
        ("message", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("duration", pa.float64()),  # seconds
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("codec", pa.string()),
        ("audio_codec", pa.string()),
        ("audio_rate", pa.int64()),
        ("video_start", pa.float64()),  # seconds
        ("audio_start", pa.float64()),  # seconds
        ("variable_frame_rate", pa.bool_()),
        ("max_frame_gap", pa.float64()),  # seconds
        ("clips", pa.int64()),
        ("clips_kept", pa.int64()),
    ]
)


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


@dataclass(frozen=True)
class CurationSummary:
    """How many went where. `refused_sources` and `refused` count reasons (a clip may have several), `pending_roles` how
    many clips wait for the weights of a role, `hours_kept` the length of what is kept."""

    sources: int
    refused_sources: dict[str, int]
    clips: int
    kept: int
    rejected: int
    failed: int
    pending: int
    refused: dict[str, int]
    pending_roles: dict[str, int]
    hours_kept: float

    def lines(self) -> list[str]:
        """The closing words for a person."""
        refused = ", ".join(f"{reason} {count}" for reason, count in self.refused.items()) or "none"
        bad = ", ".join(f"{reason} {count}" for reason, count in self.refused_sources.items()) or "none"
        states = f"{self.kept} kept, {self.rejected} rejected, {self.pending} pending, {self.failed} failed"
        needs = [
            f"{count} clips wait for weights: set models.{role} and run the same command again."
            for role, count in self.pending_roles.items()
        ]
        return [
            f"{self.sources} sources (refused: {bad})",
            f"{self.clips} clips: {states} (refused: {refused})",
            f"{self.hours_kept:.2f} hours kept",
            *needs,
        ]


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
    _write_sources(run, listed, clips)
    write_clips(run.clips_parquet, [{name: clip.get(name) for name in CLIP_SCHEMA.names} for clip in clips])
    return summarise(run)


def reselect(config: SelectConfig, run: RunFolder) -> CurationSummary:
    """Decide again over the stored scores of a finished run, with other thresholds and nothing computed anew.

    Raises FileNotFoundError before the first `curate`.
    """
    rows = read_clips(run.clips_parquet)
    write_clips(run.clips_parquet, [row | select(config, row) for row in rows])
    return summarise(run)


def summarise(run: RunFolder) -> CurationSummary:
    """Count what clips.parquet and sources.parquet of a run hold. Raises FileNotFoundError when they are not there."""
    clips = read_clips(run.clips_parquet)
    sources = pq.read_table(run.root / SOURCES_FILE).to_pylist()
    states = Counter(clip["decision"] for clip in clips)
    reasons = Counter((clip["decision"], reason) for clip in clips for reason in clip["reasons"])
    return CurationSummary(
        sources=len(sources),
        refused_sources=_counted(Counter(row["reason"] for row in sources if row["state"] != "kept")),
        clips=len(clips),
        kept=states["kept"],
        rejected=states["rejected"],
        failed=states["failed"],
        pending=states["pending"],
        refused=_counted(Counter({reason: n for (state, reason), n in reasons.items() if state == "rejected"})),
        pending_roles=_counted(
            Counter({reason.removeprefix("needs "): n for (state, reason), n in reasons.items() if state == "pending"})
        ),
        hours_kept=sum(clip["duration"] for clip in clips if clip["decision"] == "kept") / 3600,
    )


def _counted(counter: Counter) -> dict[str, int]:
    """Most frequent first, equal counts by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


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
        clip |= people_fields(find_tracks(config.people, clip), clip)
    alive = work.do(fingerprint_stage(folder), work.do(speech_stage(), cut))
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


def _write_sources(run: RunFolder, listed: Sequence[Row], clips: Sequence[Row]) -> None:
    made, kept = (
        Counter(clip["video_id"] for clip in clips),
        Counter(clip["video_id"] for clip in clips if clip["decision"] == "kept"),
    )
    rows = [
        {name: row.get(name) for name in SOURCES_SCHEMA.names}
        | {"video_id": row["unit"], "state": row.get("decision", "kept"), "reason": (row.get("reasons") or [""])[0]}
        | {"clips": made[row["unit"]], "clips_kept": kept[row["unit"]]}
        for row in listed
    ]
    with atomic_write(run.root / SOURCES_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SOURCES_SCHEMA), temporary, compression="zstd")
