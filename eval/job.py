"""Judge the videos of a run: manifest in, `report/metrics.parquet` and `report/scores.json` out.

Rerunning goes on where a killed run stopped and gives the same bytes: networks write a cache keyed by content, and
every aggregate is computed from the cache alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.executors import ExecutorConfig, Stage, run_stage
from common.ledger import Ledger, Outcome
from common.query import METRICS_SCHEMA
from common.runs import RunFolder, atomic_write, fingerprint, hash_path, read_json, sha256_file, write_json
from eval.extract import EXTRACTORS, JUDGE_ROLES, ExtractJob, FeatureConfig, load_arrays
from eval.records import NO_WEIGHTS, Seen, clip_records
from eval.scores import score_methods
from eval.study import FLOOR, ScoreConfig, Study

logger = logging.getLogger(__name__)

MANIFEST_COLUMNS = ("method", "clip_id", "video", "reference", "audio", "seed")
DEMO = "demo"
REFERENCE = "reference"


@dataclass(frozen=True)
class EvalConfig:
    """How videos are looked at and how their numbers are summed up."""

    features: FeatureConfig = FeatureConfig()
    scores: ScoreConfig = ScoreConfig()


class ManifestError(ValueError):
    """The list of videos to judge is absent or not a manifest."""


def evaluate(
    config: EvalConfig, models: Mapping[str, Path | None], run: RunFolder, executor: ExecutorConfig
) -> pa.Table:
    """Score every video of `videos/manifest.parquet` and return the long table of METRICS_SCHEMA.

    `models` maps `fid_features fvd_features sync_scorer face_detector quality_scorer` to files or folders; other roles
    are left alone. A role without weights makes its metrics "skipped: no weights" (faces then come from OpenCV's
    cascade), a video that cannot be read is a row with its error. Raises ManifestError, and FileNotFoundError for a
    model path that does not exist.
    """
    rows = read_manifest(run)
    judges = {role: Path(path) for role in JUDGE_ROLES if (path := models.get(role))}
    hashes = {role: hash_path(path) for role, path in judges.items()}
    job = ExtractJob(Path(run.root), run.cache / "features", config.features, judges, hashes)
    seen = _look_at_all(job, _units(run, rows), run, executor)

    ready = {extractor.name for extractor in EXTRACTORS if not extractor.missing(hashes)}
    protocol = config.features.protocol
    records = [record for row in rows for record in clip_records(row, seen[_name(row)], ready, protocol)]
    study = Study(
        records=records,
        seen={_name(row): seen[_name(row)].arrays for row in rows},
        real={row["clip_id"]: seen[_reference_name(row)].arrays for row in rows if row["method"] != FLOOR},
        protocol=protocol,
    )
    scores, set_records = score_methods(study, config.scores)
    table = pa.Table.from_pylist([asdict(r) for r in sorted(records + set_records)], METRICS_SCHEMA)
    with atomic_write(run.report / "metrics.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    provenance = {"config": asdict(config), "models": hashes, "manifest": fingerprint(rows)}
    write_json(run.report / "scores.json", scores | provenance)
    if DEMO in seen:
        write_json(run.report / "demo_sync.json", _demo_sync(seen[DEMO], ready))
    return table


def read_manifest(run: RunFolder) -> list[dict]:
    """Rows of the manifest, sorted. Raises ManifestError naming what is missing."""
    path = run.videos / "manifest.parquet"
    if not path.exists():
        raise ManifestError(f"{path} does not exist; generate the videos to judge first (pipeline step 'generate').")
    table = pq.read_table(path)
    missing = [name for name in MANIFEST_COLUMNS if name not in table.column_names]
    if missing:
        raise ManifestError(f"{path} lacks the columns {missing}; it must have {list(MANIFEST_COLUMNS)}.")
    rows = sorted(table.select(list(MANIFEST_COLUMNS)).to_pylist(), key=_name)
    twice = [a for a, b in zip(rows, rows[1:], strict=False) if _name(a) == _name(b)]
    if twice:
        raise ManifestError(f"{path} lists {_name(twice[0])} twice; give one row per method and clip.")
    return rows


def _look_at_all(job: ExtractJob, units: list[dict], run: RunFolder, executor: ExecutorConfig) -> dict[str, Seen]:
    """Unit name -> what came of it, from the cache that the stage has filled."""
    params = {"config": asdict(job.config), "extractors": {e.name: e.version for e in EXTRACTORS}}
    stage = Stage("eval", "1", params, job.hashes, job.make, ("video_sha256", "audio_sha256"))
    seen = {}
    for unit, outcome in zip(units, run_stage(stage, units, Ledger(run.ledger), executor), strict=True):
        files = _restore(job, unit, outcome).outputs.get("files", {})
        message = outcome.message if outcome.state == "failed" else ""
        seen[unit["unit"]] = Seen({name: load_arrays(job.cache / file) for name, file in files.items()}, message)
    return seen


def _restore(job: ExtractJob, unit: dict, outcome: Outcome) -> Outcome:
    """The ledger outlives the cache: what was deleted there is computed again."""
    lost = [file for file in outcome.outputs.get("files", {}).values() if not (job.cache / file).exists()]
    return job.make()(unit) if lost else outcome


def _name(row: dict) -> str:
    return f"{row['method']}/{row['clip_id']}"


def _units(run: RunFolder, rows: list[dict]) -> list[dict]:
    """The videos to look at: those of the manifest, the real ones they are compared with, and the demo."""
    units = [_unit(run, _name(row), row["video"], row["audio"]) for row in rows] + _demo_unit(run)
    references = {_reference_name(row): row["reference"] for row in rows}
    return units + [_unit(run, name, video, "") for name, video in sorted(references.items())]


def _reference_name(row: dict) -> str:
    return f"{REFERENCE}/{row['reference']}"


def _unit(run: RunFolder, name: str, video: str, audio: str) -> dict:
    """One row for the executor; an absent file gets an empty hash and fails there, as a row."""
    unit = {"unit": name, "video": video, "audio": audio}
    paths = {kind: Path(run.root) / unit[kind] for kind in ("video", "audio")}
    return unit | {f"{kind}_sha256": sha256_file(path) if path.is_file() else "" for kind, path in paths.items()}


def _demo_unit(run: RunFolder) -> list[dict]:
    """The long video at the head of the report, judged against the sound it was driven with."""
    video = run.videos / "demo.mp4"
    if not video.exists():
        return []
    relative = str(video.relative_to(run.root))
    about = read_json(run.videos / "demo.json") if (run.videos / "demo.json").exists() else {}
    audio = about.get("audio") or relative
    return [_unit(run, DEMO, relative, audio if (Path(run.root) / audio).exists() else relative)]


def _demo_sync(seen: Seen, ready: set[str]) -> dict:
    """Sync scores and per-frame curve of the demo video, or the reason why there are none."""
    if "sync" not in ready:
        return {"status": NO_WEIGHTS}
    if "sync" not in seen.arrays:
        return {"status": f"failed: {seen.failure}"}
    return {name: value.tolist() for name, value in seen.arrays["sync"].items()}
