"""Names for what is measured, from a video to a number:

video file           decoded once       DecodedVideo   frames and audio               eval.features.extractors
DecodedVideo         extractors         Features       arrays of one video, cached as npz
Features             of video, real     ClipFeatures   all that a metric of one clip reads
ClipFeatures         metrics            Record         one number or its reason: a row of metrics.parquet
Records + Features   of all clips       EvalTable      all that scores are computed from    eval.scoring.eval_table
EvalTable            statistics         Score          one number of a method: an entry of scores.json
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError

Arrays = dict[str, np.ndarray]
WHOLE_SET = ""
NO_WEIGHTS = "skipped: no weights"
NOT_NAMED = "skipped: the manifest names no sound, no real video or no motion"


class UnscorableError(UserError, ValueError):
    """A clip that a metric has no value for: it lowers coverage and never counts as zero."""


@dataclass(frozen=True, order=True)
class Record:
    """One measured number, or the `status` that says why there is none.

    `n` counts the windows or frames behind it, or the clips for a metric of a whole set (clip_id "").
    """

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
    """Extractor name -> arrays of one video, or the error that stopped extraction."""

    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    failure: str = ""

    def status(self, extractor: str) -> str:
        """ "ok", or why this extractor has no output for the video."""
        if extractor in self.arrays:
            return str(self.arrays[extractor]["status"])
        return f"failed: {self.failure}" if self.failure else NOT_NAMED

    def of(self, extractor: str) -> Arrays:
        """The extractor's arrays. Raises UnscorableError with the status where it has none."""
        if (status := self.status(extractor)) != "ok":
            raise UnscorableError(status)
        return self.arrays[extractor]


@dataclass(frozen=True)
class ClipFeatures:
    """All that a metric of one clip may read: features of the video, of its real video, of the input image, of the same
    talk before a camera that turns, and the frames at which chunks were joined."""

    own: Features
    real: Features = Features()
    image: Features = Features()
    seams: tuple[int, ...] = ()
    turned: Features = Features()


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: label, which way is better (+1 up, -1 down, 0 neither) and the extractor it reads.

    `of` gives a clip's value and its `n` (see Record), or raises UnscorableError. Metrics that are not `shown` are in
    the files only and are not tested. `only` names the protocol it belongs to.
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
