"""The long table of metrics: one row per method, clip and metric, with its status; a failure is a row too."""

from dataclasses import dataclass

import pyarrow as pa

from eval.extract import EXTRACTORS, NO_WEIGHTS, Arrays, ExtractJob

METRICS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("clip_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("status", pa.string()),
        ("n", pa.int32()),
        ("protocol", pa.string()),
        ("seed", pa.int64()),
    ]
)
WHOLE_SET = ""


@dataclass(frozen=True, order=True)
class Record:
    """One number. `n` counts what it rests on: windows, frames, or clips for a metric of the whole set (clip "")."""

    method: str
    clip_id: str
    metric: str
    value: float | None
    status: str
    n: int
    protocol: str
    seed: int


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: label, which way is better (+1 up, -1 down, 0 neither) and the extractor it reads."""

    label: str
    better: int
    extractor: str
    digits: int = 2


CLIP_METRICS = {
    "sync_c": Metric("Sync-C", +1, "sync"),
    "sync_d": Metric("Sync-D", -1, "sync"),
    "sync_c_valid": Metric("Sync-C (valid only)", +1, "sync"),
    "sync_offset": Metric("Offset, frames", 0, "sync", 1),
    "iqa": Metric("IQA", +1, "quality"),
    "ase": Metric("ASE", +1, "quality"),
}
SET_METRICS = {
    "fid": Metric("FID", -1, "fid"),
    "kid": Metric("KID", -1, "fid", 3),
    "fvd": Metric("FVD", -1, "fvd"),
    "kvd": Metric("KVD", -1, "fvd", 3),
}
METRICS = SET_METRICS | CLIP_METRICS
COUNTS = {"sync": "windows", "quality": "frames"}


def clip_records(row: dict, arrays: dict[str, Arrays], failure: str, job: ExtractJob) -> list[Record]:
    """The per-clip metrics of one manifest row; without a value they say why."""
    ready = {extractor.name for extractor in EXTRACTORS if not extractor.missing(job.hashes)}
    records = []
    for name, metric in CLIP_METRICS.items():
        found = arrays.get(metric.extractor, {})
        value, n = None, 0
        if metric.extractor not in ready:
            status = NO_WEIGHTS
        elif failure or not found:
            status = f"failed: {failure}"
        else:
            status = str(found["status"])
        if status == "ok":
            value, n = float(found[name]), int(found[COUNTS[metric.extractor]])
        seed = int(row["seed"] or 0)
        records.append(Record(row["method"], row["clip_id"], name, value, status, n, job.config.protocol, seed))
    return records
