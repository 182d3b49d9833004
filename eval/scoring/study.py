"""What is compared, and by which rules: the common input of the per-clip and the whole-set scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.features.records import Arrays, Record

REAL = "real"
FEWEST_CLIPS = 3
Score = dict[str, Any]


@dataclass(frozen=True)
class EvalTable:
    """All that was seen: per-clip records, arrays per "method/clip_id", and the arrays of each clip's real video.

    `groups`: clip_id -> the video or speaker it is of, for clips that are not independent; any other is its own.
    """

    records: Sequence[Record]
    seen: Mapping[str, Mapping[str, Arrays]]
    real: Mapping[str, Mapping[str, Arrays]]
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
        """clip_id -> value, the mean where a clip was made with several seeds; clips without a value left out."""
        return {clip: float(np.mean(values)) for clip, values in self.by_seed(method, metric).items()}

    def by_seed(self, method: str, metric: str) -> dict[str, list[float]]:
        """clip_id -> values of the clip's seeds, those without a value left out."""
        found: dict[str, list[float]] = {}
        for record in self.rows(method, metric):
            if record.value is not None:
                found.setdefault(record.clip_id, []).append(record.value)
        return found

    def group(self, clip_id: str) -> str:
        """What the clip belongs to, its own id if nothing else."""
        return self.groups.get(clip_id, clip_id)

    def features(self, method: str, extractor: str) -> dict[str, np.ndarray]:
        """clip_id -> feature rows (n, d) of a method's videos, or of the real ones for REAL."""
        clips = {r.clip_id for r in self.records if r.method == method}
        looked_at = self.real if method == REAL else {clip: self.seen[f"{method}/{clip}"] for clip in clips}
        found = {clip: arrays.get(extractor, {}) for clip, arrays in sorted(looked_at.items())}
        return {clip: arrays["features"] for clip, arrays in found.items() if "features" in arrays}
