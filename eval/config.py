"""The recipe's `eval` section."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import InputError
from common.ranges import Count
from perception.config import Protocol

ROLES: Mapping[str, str] = {
    "fid_features": "no FID",
    "fvd_features": "no FVD",
    "sync_scorer": "no Sync-C and Sync-D",
    "face_detector": "OpenCV's frontal-face cascade looks for faces",
    "quality_scorer": "no IQA and ASE",
    "face_identity": "no likeness of faces, no split of the data by person",
    "pose": "no points of body and hands",
}
"""Model roles of the judges -> what the report lacks without each."""


@dataclass(frozen=True)
class SyncRules:
    """`max_shift` in frames to each side (15 in the reference); `min_track` frames a face must be seen for.

    The reference requires more than 100 frames, which no 3 s clip has, so the number used is part of every result. The
    detector runs on every `look_every`-th frame (1 in the reference); boxes in between are interpolated.
    """

    max_shift: Count = 15
    min_track: Count = 25
    look_every: Count = 1


@dataclass(frozen=True)
class FeatureConfig:
    """Which frames and windows the networks get; two protocols, never mixed in one table.

    `paper`: FID on every frame, FVD on one window from the start. `strict`: FID on 16 frames spread over the clip
    without the first (a copy of the input picture), FVD on up to 8 windows end to end, and again with every fourth
    frame. How each resizes is in `perception.features.nets`. `fvd_stride`: frames between two frames of a window.
    `identity_every`: frames between two in which faces are embedded.
    """

    protocol: Protocol = "paper"
    fvd_stride: Count = 1
    identity_every: Count = 1
    sync: SyncRules = SyncRules()


@dataclass(frozen=True)
class ScoreConfig:
    """How numbers are summed up.

    `comparisons` names pairs "a>b"; null compares the judged method of the manifest with every other. FID and FVD with
    thousands of features over many frames take minutes per distance: lower `swap_draws` (most label permutations,
    0 = no test) and `jackknife_groups` for them. No p is then below 1 / (swap_draws + 1), which Holm's correction
    multiplies by the number of tests.
    """

    comparisons: tuple[str, ...] | None = None
    resamples: Count = 10_000
    swap_draws: int = 499
    jackknife_groups: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for pair in self.comparisons or ():
            if pair.count(">") != 1 or not all(pair.split(">")):
                raise InputError(f"Comparison '{pair}' is not of the form 'method>method'; write e.g. 'ours>theirs'.")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons as (a, b)."""
        return [(a, b) for a, _, b in (pair.partition(">") for pair in self.comparisons or ())]


@dataclass(frozen=True)
class EvalConfig:
    """What is measured of videos, and how the numbers are summed up.

    `reported` names tables of `paper_tables.csv` of which the report shows the two systems apart from its own numbers.
    """

    features: FeatureConfig = FeatureConfig()
    scores: ScoreConfig = ScoreConfig()
    reported: tuple[str, ...] = ()
