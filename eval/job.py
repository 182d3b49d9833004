"""START HERE. Judge the videos of a run: manifest in, `report/metrics.parquet` and `report/scores.json` out.

A killed run resumes where it stopped and ends in the same bytes: extractors fill a cache keyed by content, and every
number is computed from the cache alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Weights
from common.ledger.store import Ledger
from common.query import METRICS_SCHEMA
from common.runs import RunFolder, atomic_write, fingerprint, sha256_file, write_json
from common.untrusted.sidecars import read_sidecar
from eval.config import ROLES, EvalConfig
from eval.features.extract import INPUTS, ExtractStage, load_arrays
from eval.features.extractors import EXTRACTORS
from eval.features.records import NO_WEIGHTS, ClipFeatures, Features, Record
from eval.manifest import FLOOR, arrange, read_manifest, read_roles, video_name
from eval.metrics.clip_metrics import clip_records
from eval.scoring.eval_table import EvalTable
from eval.scoring.scores import score_methods

logger = logging.getLogger(__name__)

DEMOS = ("demo", "demo_avatar")  # the long video of the report, and that of the second system
REFERENCE = "reference"
# Extractors that run on a real video that others are compared with, on an input image, and on the demo.
OF_REFERENCE = ("fid", "fvd", "fvd_slow", "identity", "pose")
OF_IMAGE = ("identity",)
OF_TURNED = ("identity",)
OF_DEMO = ("sync",)
DEMO_LEAVES_OUT = ("by_window", "window_start")


def evaluate(
    config: EvalConfig, models: Mapping[str, Path | None], run: RunFolder, executor: ExecutorConfig
) -> pa.Table:
    """Score every video of `videos/manifest.parquet` and return the long table of METRICS_SCHEMA.

    `models` maps the roles of ROLES to files or folders; other roles are ignored. A role without weights makes
    its metrics "skipped: no weights" (faces are then detected by OpenCV's cascade), a video that cannot be read is a
    row with its error. Raises ManifestError, and FileNotFoundError for a model path that does not exist.
    """
    rows, roles = read_manifest(run), read_roles(run)
    judges = tuple(Weights.of(role, Path(path)) for role in ROLES if (path := models.get(role)))
    stage = ExtractStage(config.features, judges, Path(run.root), run.cache / "features")
    features = _extract(stage, units_of(run, rows), run, executor)

    ready = {extractor.name for extractor in stage.extractors}
    measured = _eval_table(run, rows, features, ready, config.features.protocol)
    if config.scores.comparisons is None:
        methods = arrange({row["method"] for row in rows}, roles)
        config = replace(config, scores=replace(config.scores, comparisons=methods.comparisons))
    scores, set_records = score_methods(measured, config.scores)
    table = pa.Table.from_pylist([asdict(r) for r in sorted([*measured.records, *set_records])], METRICS_SCHEMA)
    with atomic_write(run.report / "metrics.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    provenance = {"config": asdict(config), "models": stage.models, "manifest": fingerprint(rows), "roles": roles}
    write_json(run.report / "scores.json", scores | provenance)
    for name in DEMOS:
        if name in features:
            write_json(run.report / f"{name}_sync.json", _demo_sync(features[name], ready))
    return table


def _eval_table(
    run: RunFolder, rows: list[dict], features: Mapping[str, Features], ready: set[str], protocol: str
) -> EvalTable:
    """The records of every clip; set distances use the first seed of each."""
    records: list[Record] = []
    for row in rows:
        real, image = features.get(_reference_name(row), Features()), features.get(_image_name(row), Features())
        turned = features.get(_turned_name(row), Features())
        clip = ClipFeatures(features[video_name(row)], real, image, _seams(Path(run.root) / row["video"]), turned)
        records += clip_records(row, clip, ready, protocol)
    first_seed = {(row["method"], row["clip_id"]): row for row in reversed(rows)}
    return EvalTable(
        records=records,
        arrays={f"{method}/{clip}": features[video_name(row)].arrays for (method, clip), row in first_seed.items()},
        real_arrays={
            row["clip_id"]: features[_reference_name(row)].arrays
            for row in rows
            if row["reference"] and row["method"] != FLOOR
        },
        protocol=protocol,
        groups={row["clip_id"]: row["group"] for row in rows if row["group"]},
    )


def _extract(stage: ExtractStage, units: list[dict], run: RunFolder, executor: ExecutorConfig) -> dict[str, Features]:
    """Unit name -> features, read from the cache that the stage has filled."""
    features = {}
    for unit, outcome in zip(units, run_stage(stage, units, Ledger(run.ledger), executor), strict=True):
        files = outcome.outputs.get("files", {})
        message = outcome.message if outcome.state == "failed" else ""
        arrays = {name: load_arrays(stage.cache / file) for name, file in files.items()}
        features[unit["unit"]] = Features(arrays, message)
    return features


def _reference_name(row: dict) -> str:
    return f"{REFERENCE}/{row['reference']}"


def _image_name(row: dict) -> str:
    return f"picture/{row['image']}"  # a unit's name in the ledger: another one would extract again


def _turned_name(row: dict) -> str:
    return f"turned/{row['turned']}"


def units_of(run: RunFolder, rows: list[dict]) -> list[dict]:
    """The units of work: videos of the manifest, the videos and input images they are compared with, and the demos."""
    everything = tuple(extractor.name for extractor in EXTRACTORS)
    units = [
        _unit(
            run, video_name(row), row["video"], everything, audio=row["audio"], real=row["reference"],
            motion=row["motion"], motion_reference=row["motion_reference"],
        )
        for row in rows
    ]  # fmt: skip
    others: dict[str, tuple[str, tuple[str, ...]]] = {
        _reference_name(row): (row["reference"], OF_REFERENCE) for row in rows if row["reference"]
    }
    others |= {_image_name(row): (row["image"], OF_IMAGE) for row in rows if row["image"]}
    others |= {_turned_name(row): (row["turned"], OF_TURNED) for row in rows if row["turned"]}
    return units + _demo_units(run) + [_unit(run, name, *what) for name, what in sorted(others.items())]


def _unit(run: RunFolder, name: str, video: str, extractors: tuple[str, ...], **others: str) -> dict:
    """One unit for the executor; an absent file has an empty hash and fails there, as a row."""
    files = dict.fromkeys(INPUTS, "") | {"video": video, **others}
    paths = {kind: Path(run.root) / path for kind, path in files.items() if path}
    hashes = {kind: sha256_file(path) if path.is_file() else "" for kind, path in paths.items()}
    unit = {"unit": name, **files, "extractors": list(extractors)}
    return unit | {f"{kind}_sha256": hashes.get(kind, "") for kind in INPUTS}


def _seams(video: Path) -> tuple[int, ...]:
    """First new frame of every chunk but the first, from the JSON that the generator wrote beside the video, if any."""
    starts = read_sidecar(video.with_suffix(".json")).get("chunk_starts")
    starts = starts if isinstance(starts, list) else []
    return tuple(start for start in starts if isinstance(start, int) and 0 < start < 2**31)


def _demo_units(run: RunFolder) -> list[dict]:
    """The long videos of the report, judged against their own audio track: the driving audio may begin earlier."""
    files = {name: run.videos / f"{name}.mp4" for name in DEMOS}
    paths = {name: str(file.relative_to(run.root)) for name, file in files.items() if file.exists()}
    return [_unit(run, name, video, OF_DEMO, audio=video) for name, video in paths.items()]


def _demo_sync(features: Features, ready: set[str]) -> dict:
    """Sync scores and per-frame curve of the demo video, or the reason why there are none."""
    if "sync" not in ready:
        return {"status": NO_WEIGHTS}
    if "sync" not in features.arrays:
        return {"status": f"failed: {features.failure}"}
    return {name: value.tolist() for name, value in features.arrays["sync"].items() if name not in DEMO_LEAVES_OUT}
