"""The long table of metrics: one row per method, clip and metric, with its status; a failure is a row too."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
WHOLE_SET = ""
NO_WEIGHTS = "skipped: no weights"


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
    """How a metric is shown: label, which way is better (+1 up, -1 down, 0 neither) and the extractor it reads.

    Metrics that are not `shown` are in the files only and are not tested.
    """

    label: str
    better: int
    extractor: str
    digits: int = 2
    shown: bool = True


CLIP_METRICS = {
    "sync_c": Metric("Sync-C", +1, "sync"),
    "sync_d": Metric("Sync-D", -1, "sync"),
    "offset_zero": Metric("Offset 0", +1, "sync"),
    "iqa": Metric("IQA", +1, "quality"),
    "ase": Metric("ASE", +1, "quality"),
    "sync_c_valid": Metric("Sync-C, valid windows only", +1, "sync", shown=False),
    "sync_offset": Metric("Offset, frames", 0, "sync", shown=False),
}
SET_METRICS = {
    "fid": Metric("FID", -1, "fid"),
    "kid": Metric("KID", -1, "fid", 3),
    "fvd": Metric("FVD", -1, "fvd"),
    "kvd": Metric("KVD", -1, "fvd", 3),
}
METRICS = SET_METRICS | CLIP_METRICS
COUNTS = {"sync": "windows", "quality": "frames"}


@dataclass(frozen=True)
class Seen:
    """What came of looking at one video: the arrays of each extractor, or the error that stopped it."""

    arrays: Mapping[str, Arrays]
    failure: str = ""


def clip_records(row: Mapping[str, Any], seen: Seen, ready: Collection[str], protocol: str) -> list[Record]:
    """The per-clip metrics of one manifest row; `ready` names the extractors that have weights.

    A metric without a value says why in its status.
    """
    records = []
    for name, metric in CLIP_METRICS.items():
        status = _status(seen, metric.extractor, ready)
        value, n = None, 0
        if status == "ok":
            found = seen.arrays[metric.extractor]
            value, n = float(found[name]), int(found[COUNTS[metric.extractor]])
        records.append(
            Record(row["method"], row["clip_id"], name, value, status, n, protocol, int(row["seed"] or 0)),
        )
    return records


def _status(seen: Seen, extractor: str, ready: Collection[str]) -> str:
    if extractor not in ready:
        return NO_WEIGHTS
    if extractor not in seen.arrays:
        return f"failed: {seen.failure}"
    return str(seen.arrays[extractor]["status"])
