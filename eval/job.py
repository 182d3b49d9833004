"""Judge the videos of a run: manifest in, `report/metrics.parquet` and `report/scores.json` out.

Rerunning goes on where a killed run stopped and gives the same bytes: networks write a cache keyed by content, and
every aggregate is computed from the cache alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage
from common.ledger.store import Ledger, Outcome
from common.query import METRICS_SCHEMA
from common.runs import RunFolder, atomic_write, fingerprint, hash_path, read_json, sha256_file, write_json
from eval.config import ROLES, EvalConfig
from eval.features.extract import ExtractJob, is_lost, load_arrays
from eval.features.extractors import EXTRACTORS
from eval.features.records import NO_WEIGHTS, ClipFeatures, Features, Record
from eval.manifest import FLOOR, arrange, read_manifest, read_roles, video_name
from eval.metrics.clip_metrics import clip_records
from eval.scoring.scores import score_methods
from eval.scoring.study import EvalTable

logger = logging.getLogger(__name__)

DEMO = "demo"
REFERENCE = "reference"
# What is looked at in a real video that others are compared with, in an input picture, and in the demo.
OF_REFERENCE = ("fid", "fvd", "fvd_slow", "identity", "pose")
OF_PICTURE = ("identity",)
OF_DEMO = ("sync",)
DEMO_LEAVES_OUT = ("by_window", "window_start")


def evaluate(
    config: EvalConfig, models: Mapping[str, Path | None], run: RunFolder, executor: ExecutorConfig
) -> pa.Table:
    """Score every video of `videos/manifest.parquet` and return the long table of METRICS_SCHEMA.

    `models` maps the roles of ROLES to files or folders; other roles are left alone. A role without weights makes
    its metrics "skipped: no weights" (faces then come from OpenCV's cascade), a video that cannot be read is a row with
    its error. Raises ManifestError, and FileNotFoundError for a model path that does not exist.
    """
    rows, roles = read_manifest(run), read_roles(run)
    judges = {role: Path(path) for role in ROLES if (path := models.get(role))}
    hashes = {role: hash_path(path) for role, path in judges.items()}
    job = ExtractJob(Path(run.root), run.cache / "features", config.features, judges, hashes)
    seen = _look_at_all(job, units_of(run, rows), run, executor)

    ready = {extractor.name for extractor in job.extractors}
    study = _study(run, rows, seen, ready, config.features.protocol)
    if config.scores.comparisons is None:
        methods = arrange({row["method"] for row in rows}, roles)
        config = replace(config, scores=replace(config.scores, comparisons=methods.comparisons))
    scores, set_records = score_methods(study, config.scores)
    table = pa.Table.from_pylist([asdict(r) for r in sorted([*study.records, *set_records])], METRICS_SCHEMA)
    with atomic_write(run.report / "metrics.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    provenance = {"config": asdict(config), "models": hashes, "manifest": fingerprint(rows), "roles": roles}
    write_json(run.report / "scores.json", scores | provenance)
    if DEMO in seen:
        write_json(run.report / "demo_sync.json", _demo_sync(seen[DEMO], ready))
    return table


def _study(run: RunFolder, rows: list[dict], seen: Mapping[str, Features], ready: set[str], protocol: str) -> EvalTable:
    """The records of every clip; sets of features are those of the first seed."""
    records: list[Record] = []
    for row in rows:
        real, picture = seen.get(_reference_name(row), Features()), seen.get(_picture_name(row), Features())
        look = ClipFeatures(seen[video_name(row)], real, picture, _seams(Path(run.root) / row["video"]))
        records += clip_records(row, look, ready, protocol)
    first = {(row["method"], row["clip_id"]): row for row in reversed(rows)}
    return EvalTable(
        records=records,
        seen={f"{method}/{clip}": seen[video_name(row)].arrays for (method, clip), row in first.items()},
        real={r["clip_id"]: seen[_reference_name(r)].arrays for r in rows if r["reference"] and r["method"] != FLOOR},
        protocol=protocol,
        groups={row["clip_id"]: row["group"] for row in rows if row["group"]},
    )


def _look_at_all(job: ExtractJob, units: list[dict], run: RunFolder, executor: ExecutorConfig) -> dict[str, Features]:
    """Unit name -> what came of it, from the cache that the stage has filled."""
    params = {"config": asdict(job.config), "extractors": {e.name: e.version for e in EXTRACTORS}}
    reads = ("video_sha256", "audio_sha256", "real_sha256", "extractors")
    stage = Stage("eval", "2", params, job.hashes, job.make, reads)
    seen = {}
    for unit, outcome in zip(units, run_stage(stage, units, Ledger(run.ledger), executor), strict=True):
        files = _restore(job, unit, outcome).outputs.get("files", {})
        message = outcome.message if outcome.state == "failed" else ""
        seen[unit["unit"]] = Features({name: load_arrays(job.cache / file) for name, file in files.items()}, message)
    return seen


def _restore(job: ExtractJob, unit: dict, outcome: Outcome) -> Outcome:
    """The ledger outlives the cache: what was deleted there is computed again."""
    lost = [file for file in outcome.outputs.get("files", {}).values() if is_lost(job.cache / file)]
    return job.make()(unit) if lost else outcome


def _reference_name(row: dict) -> str:
    return f"{REFERENCE}/{row['reference']}"


def _picture_name(row: dict) -> str:
    return f"picture/{row['image']}"


def units_of(run: RunFolder, rows: list[dict]) -> list[dict]:
    """The videos to look at: those of the manifest, the real ones and pictures they are compared with, and the demo."""
    everything = tuple(extractor.name for extractor in EXTRACTORS)
    units = [_unit(run, video_name(row), row["video"], everything, row["audio"], row["reference"]) for row in rows]
    others: dict[str, tuple[str, tuple[str, ...]]] = {
        _reference_name(row): (row["reference"], OF_REFERENCE) for row in rows if row["reference"]
    }
    others |= {_picture_name(row): (row["image"], OF_PICTURE) for row in rows if row["image"]}
    return units + _demo_unit(run) + [_unit(run, name, *what) for name, what in sorted(others.items())]


def _unit(run: RunFolder, name: str, video: str, extractors: tuple[str, ...], audio: str = "", real: str = "") -> dict:
    """One row for the executor; an absent file gets an empty hash and fails there, as a row."""
    unit = {"unit": name, "video": video, "audio": audio, "real": real, "extractors": list(extractors)}
    paths = {kind: Path(run.root) / path for kind, path in (("video", video), ("audio", audio), ("real", real))}
    return unit | {f"{kind}_sha256": sha256_file(path) if path.is_file() else "" for kind, path in paths.items()}


def _seams(video: Path) -> tuple[int, ...]:
    """First new frame of every chunk but the first, as the generator wrote it beside the video; none if it did not."""
    beside = video.with_suffix(".json")
    starts = read_json(beside).get("chunk_starts", []) if beside.exists() else []
    return tuple(int(start) for start in starts if start > 0)


def _demo_unit(run: RunFolder) -> list[dict]:
    """The long video at the head of the report, judged against its own sound: what drove it may begin earlier."""
    if not (run.videos / "demo.mp4").exists():
        return []
    video = str((run.videos / "demo.mp4").relative_to(run.root))
    return [_unit(run, DEMO, video, OF_DEMO, video)]


def _demo_sync(seen: Features, ready: set[str]) -> dict:
    """Sync scores and per-frame curve of the demo video, or the reason why there are none."""
    if "sync" not in ready:
        return {"status": NO_WEIGHTS}
    if "sync" not in seen.arrays:
        return {"status": f"failed: {seen.failure}"}
    return {name: value.tolist() for name, value in seen.arrays["sync"].items() if name not in DEMO_LEAVES_OUT}
