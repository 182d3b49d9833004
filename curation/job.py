"""START HERE: the curation job, sources -> clips.parquet and clip files. Stages add fields, `select` alone decides.

download -> probe -> scan -> tracks -> [clips] -> cut -> scoring, each source by itself; then, over all clips,
duplicates -> select
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.flow import Flow, Step
from common.executors.flow_run import run_flow
from common.executors.stage import ROWS
from common.ledger.store import Ledger
from common.runs import RunFolder, fingerprint, hash_path, plain
from curation.config import ROLES, CaptionConfig, CurationConfig, SourcesConfig
from curation.dataset.holdings import PER_FRAME
from curation.dataset.takedown import part_taken_down
from curation.decide.fingerprints import read_fingerprints
from curation.decide.table import write_part
from curation.download.fetch import fetch_steps
from curation.reporting.summary import CurationSummary, write_source_part
from curation.scoring import scoring_steps
from curation.sources.listing import list_sources
from curation.stages.captions import caption_fields
from curation.stages.cut import CutStage
from curation.stages.probe import ProbeStage
from curation.stages.scan import scan_stage
from curation.stages.shots import source_fields
from curation.stages.tracks import TracksStage
from curation.tables import write_tables

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Models = Mapping[str, Path | None]

VIDEOS = "videos"  # folder of downloads in the run's cache


def curate(
    config: CurationConfig,
    sources: SourcesConfig,
    models: Models,
    run: RunFolder,
    executor: ExecutorConfig,
    at_rest: Callable[[], object] | None = None,
) -> CurationSummary:
    """Run every source through every stage and write clips.parquet, tracks.parquet, sources.parquet and the clip
    files.

    Model roles: face_detector (else OpenCV's cascade), active_speaker, sync_scorer, pose, quality_scorer, captioner; a
    scorer that is absent leaves its clips pending. Killed and run again it goes on, and ends in the same bytes.
    `at_rest` is called now and then, at moments when nothing is being written. Raises FileNotFoundError or SourcesError
    for the sources, StageError for weights that do not load, DiskFullError.
    """
    references = read_fingerprints(Path(config.keep_out)) if config.keep_out else []
    listed, gone = part_taken_down(run, list_sources(sources))
    flow = curation_flow(config, models, run, remote=sources.kind != "folder")
    rows = run_flow(flow, listed, Ledger(run.ledger), executor, "sources", at_rest)
    judged, listing = run.cache / "judged.parquet", run.cache / "listed.parquet"
    run.cache.mkdir(parents=True, exist_ok=True)
    write_part(judged, (row for _, row in rows.rows("unit <> listed")))
    sources_left = (row for _, row in rows.rows("unit = listed"))
    write_source_part(listing, enumerate(chain(sources_left, gone)))
    run_id = fingerprint([plain(config), {role: _hash(models.get(role)) for role in ROLES}])
    versions = {step.stage.name: step.stage.fingerprint for step in flow.steps}
    summary = write_tables(config, run, [judged], [listing], run_id, versions, references)
    judged.unlink()
    listing.unlink()
    return summary


def curation_flow(config: CurationConfig, models: Models, run: RunFolder, remote: bool) -> Flow:
    """What a source goes through. With `remote` ones, or entries of a list that cannot be used, it is fetched first."""
    folder = Path(config.download.folder).expanduser() if config.download.folder else run.cache / VIDEOS
    per_frame = run.root / PER_FRAME
    clips = partial(clips_of, config.captions, bool(models.get("captioner")))
    steps = [
        *(fetch_steps(config.download, folder) if remote else ()),
        Step(ProbeStage()),
        Step(scan_stage(config.scan, models, per_frame)),
        Step(TracksStage(config.people, config.cut, per_frame), then=clips),
        Step(
            CutStage(run.clips),
            leaves=partial(is_short, config.cut.min_seconds),
            then=partial(cut_clip, run.clips.name),
        ),
        *scoring_steps(config, models, run.clips, per_frame),
    ]
    # Of what the steps make of rows; thresholds and copies are for later.
    settings = {"cut": config.cut, "captions": config.captions, "framing": config.framing}
    most_bytes = round(config.download.most_ahead_gb * 1e9)
    return Flow(tuple(steps), settings=settings, most_bytes=most_bytes)


def clips_of(config: CaptionConfig, captioner: bool, source: Row) -> list[Row]:
    """The rows of the clips of a source."""
    shared = source_fields(source) | caption_fields(config, source, captioner)  # type: ignore[arg-type]
    return [dict(shared | clip) for clip in source[ROWS]]


def is_short(min_seconds: float, clip: Row) -> bool:
    """Whether a clip is too short to be cut; it stays a row of the table."""
    return bool(clip["duration"] < min_seconds)


def cut_clip(folder: str, clip: Row) -> Row:
    """The row of a clip that was cut, with the fields about faces."""
    people = clip.pop("people")
    return clip | {"cut_sha256": clip["sha256"], "bytes_uri": f"{folder}/{clip['unit']}.mp4"} | people


def _hash(path: Path | None) -> str:
    return hash_path(path) if path else ""
