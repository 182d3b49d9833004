"""Recipe sections of the flow itself: drawn clips, videos to make, sample videos to watch."""

from dataclasses import dataclass

from common.ranges import Count, Positive
from omniavatar.config import Request

LIKENESS_ROLES = ("face_detector", "face_identity")
"""Roles that measure the drift of a long video, where there are weights for them."""

HALF_BODY_EVERY = 5

WINDOW_SECONDS = 49 / 25


@dataclass(frozen=True)
class DrawnConfig:
    """How many clips are drawn for training and held out, `seconds` long; every `half_body_every`-th shows half a body,
    none with 0."""

    train: int = 1800
    test: int = 48
    seconds: Positive = WINDOW_SECONDS
    half_body_every: int = HALF_BODY_EVERY


# Methods that the generate step makes, and what each is to the evaluation (`eval.manifest.ROLES`).
METHOD_ROLES = {"adapter": "judged", "swapped_audio": "swapped", "base": "control"}
GENERATED = tuple(METHOD_ROLES)
JUDGED = GENERATED[0]


@dataclass(frozen=True)
class VideosConfig:
    """`clips` held-out clips of `frames` video frames (4n), made `batch` at a time; `floor` real clips of training."""

    clips: int = 24
    frames: Count = 48
    batch: Count = 8
    floor: int = 24
    methods: tuple[str, ...] = GENERATED
    long: Request | None = None


@dataclass(frozen=True)
class SamplesConfig:
    """`clips` held-out clips of `frames` video frames (4n) are animated by every exported adapter, `steps` each.

    A process that waits looks for new adapters every `every_seconds`.
    """

    clips: int = 8
    frames: Count = 48
    steps: int = 0  # of the sampler; 0 = the recipe's
    every_seconds: Positive = 10.0
