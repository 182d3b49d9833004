"""The long table of metrics: one row per method, clip and metric, with its status; a failure is a row too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError

Arrays = dict[str, np.ndarray]
WHOLE_SET = ""
NO_WEIGHTS = "skipped: no weights"
NOT_NAMED = "skipped: the manifest names no sound or no real video"


class UnscorableError(UserError, ValueError):
    """A clip that a metric has no value for: it counts against coverage and is never a zero."""


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
class Features:
    """What came of looking at one video: the arrays of each extractor, or the error that stopped it."""

    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    failure: str = ""

    def status(self, extractor: str) -> str:
        """ "ok", or why this extractor has nothing to say of the video."""
        if extractor in self.arrays:
            return str(self.arrays[extractor]["status"])
        return f"failed: {self.failure}" if self.failure else NOT_NAMED

    def of(self, extractor: str) -> Arrays:
        """The extractor's arrays. UnscorableError with the status where it has none."""
        if (status := self.status(extractor)) != "ok":
            raise UnscorableError(status)
        return self.arrays[extractor]


@dataclass(frozen=True)
class ClipFeatures:
    """All that a metric of one clip may read: what was seen of the video, of its real one and of the input picture, and
    the frames at which chunks were joined."""

    own: Features
    real: Features = Features()
    picture: Features = Features()
    seams: tuple[int, ...] = ()


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: label, which way is better (+1 up, -1 down, 0 neither) and the extractor it reads.

    `of` gives a clip's value and what it rests on, or raises UnscorableError. Metrics that are not `shown` are in the
    files only and are not tested. `only` names the protocol it belongs to.
    """

    label: str
    better: int
    extractor: str
    digits: int = 2
    shown: bool = True
    of: Callable[[ClipFeatures], tuple[float, int]] | None = None
    only: str = ""


SET_METRICS = {
    "fid": Metric("FID", -1, "fid"),
    "kid": Metric("KID", -1, "fid", 3),
    "fvd": Metric("FVD", -1, "fvd"),
    "kvd": Metric("KVD", -1, "fvd", 3),
    "fvd_slow": Metric("FVD, stride 4", -1, "fvd_slow", only="strict"),
    "kvd_slow": Metric("KVD, stride 4", -1, "fvd_slow", 3, only="strict"),
}
