"""Recipe sections of the flow itself: drawn clips, videos to make, sample videos to watch."""

from dataclasses import dataclass

from common.errors import InputError
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
# Methods of the second system, for `videos.methods`: an avatar of the same picture says the same voice, or another's.
AVATAR, SWAPPED_AVATAR = "avatar", "swapped_avatar"


@dataclass(frozen=True)
class AvatarsConfig:
    """Avatars of the second system, built at no more than `size` px with `steps` of refinement of their colours; the
    longest side of the long video's in px, and the swing of the camera to both sides in degrees."""

    size: Count = 96
    steps: int = 40
    longest_side: Count = 128
    turntable: float = 15.0


@dataclass(frozen=True)
class VideosConfig:
    """`clips` held-out clips of `frames` video frames (4n), made `batch` at a time; `floor` real clips of training.

    With `avatars`, an avatar of the long video's portrait says its voice, too; with the methods `avatar` and
    `swapped_avatar` avatars of the clips say theirs.
    """

    clips: int = 24
    frames: Count = 48
    batch: Count = 8
    floor: int = 24
    methods: tuple[str, ...] = GENERATED
    long: Request | None = None
    avatars: AvatarsConfig | None = None

    def __post_init__(self) -> None:
        if self.avatars is None and {AVATAR, SWAPPED_AVATAR} & set(self.methods):
            raise InputError("videos.methods has avatars but videos.avatars is not set; add e.g. avatars: {steps: 40}.")


@dataclass(frozen=True)
class SamplesConfig:
    """`clips` held-out clips of `frames` video frames (4n) are animated by every exported adapter, `steps` each.

    A process that waits looks for new adapters every `every_seconds`.
    """

    clips: int = 8
    frames: Count = 48
    steps: int = 0  # of the sampler; 0 = the recipe's
    every_seconds: Positive = 10.0
