"""All measurements of a run: in memory with the features behind them, and as read back from `metrics.parquet`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.parquet import read_schema, read_table
from common.runs import RunFolder
from eval.features.records import Arrays, Record

REAL = "real"  # the set of real videos that methods are held against
FEWEST_CLIPS = 3  # below which neither a test nor a set distance means anything
Score = dict[str, Any]  # one entry of scores.json
Table = Sequence[Mapping[str, Any]]  # rows of metrics.parquet


class CompareError(UserError, ValueError):
    """There is nothing that can be compared."""


@dataclass(frozen=True)
class EvalTable:
    """Everything that scores are computed from.

    `records` has one row per method, clip, seed and metric; `arrays` the extractors' output per "method/clip_id" and
    `real_arrays` that of each clip's real video, which set distances need. `groups`: clip_id -> the video or speaker it
    belongs to, for clips that are not independent; any other clip is its own group.
    """

    records: Sequence[Record]
    arrays: Mapping[str, Mapping[str, Arrays]]
    real_arrays: Mapping[str, Mapping[str, Arrays]]
    protocol: str
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Methods of the manifest, sorted."""
        return sorted({record.method for record in self.records})

    def rows(self, method: str, metric: str) -> list[Record]:
        """The records of one metric of one method, one per clip and seed."""
        return [r for r in self.records if r.method == method and r.metric == metric]

    def values(self, method: str, metric: str) -> dict[str, float]:
        """clip_id -> value, the mean over the clip's seeds; clips without a value are left out."""
        return {clip: float(np.mean(values)) for clip, values in self.by_seed(method, metric).items()}

    def by_seed(self, method: str, metric: str) -> dict[str, list[float]]:
        """clip_id -> values of the clip's seeds; those without a value are left out."""
        values: dict[str, list[float]] = {}
        for record in self.rows(method, metric):
            if record.value is not None:
                values.setdefault(record.clip_id, []).append(record.value)
        return values

    def group(self, clip_id: str) -> str:
        """The group of a clip, its own id if it has no other."""
        return self.groups.get(clip_id, clip_id)

    def features(self, method: str, extractor: str) -> dict[str, np.ndarray]:
        """clip_id -> feature rows (n, d) of a method's videos, or of the real ones for REAL."""
        clips = {r.clip_id for r in self.records if r.method == method}
        by_clip = self.real_arrays if method == REAL else {clip: self.arrays[f"{method}/{clip}"] for clip in clips}
        outputs = {clip: arrays.get(extractor, {}) for clip, arrays in sorted(by_clip.items())}
        return {clip: output["features"] for clip, output in outputs.items() if "features" in output}


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of `metrics.parquet` of a judged run. Raises CompareError where there are none."""
    path = Path(run.root) / "report" / "metrics.parquet"
    if not path.exists():
        raise CompareError(f"{path} does not exist; judge the run first: omniavatar eval run --run {run.root}")
    return read_table(path).to_pylist()


def by_clip(rows: Table, method: str, metric: str) -> dict[str, float]:
    """clip_id -> value of one method in one metric, the mean over seeds; a whole set has the id ""."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and row["metric"] == metric and row["value"] is not None:
            values.setdefault(row["clip_id"], []).append(row["value"])
    return {clip: float(np.mean(each)) for clip, each in values.items()}


def check_protocols(*tables: Table) -> None:
    """Raises CompareError when tables were made by different protocols, whose numbers share no column."""
    protocols = sorted({row["protocol"] for rows in tables for row in rows})
    if len(protocols) > 1:
        raise CompareError(
            f"The protocols are {' and '.join(protocols)}; expected one. Judge both runs with the same "
            "eval.features.protocol."
        )


def read_groups(run: RunFolder) -> dict[str, str]:
    """clip_id -> video or speaker, of the clips whose manifest names one."""
    path = Path(run.root) / "videos" / "manifest.parquet"
    if not path.is_file() or "group" not in read_schema(path).names:
        return {}
    rows = read_table(path, columns=["clip_id", "group"]).to_pylist()
    return {row["clip_id"]: row["group"] for row in rows if row["group"]}
