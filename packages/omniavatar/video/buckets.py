"""Image sizes the model was trained on, and the choice among them."""

from collections.abc import Sequence
from math import log

from common.errors import InputError

# Height x width by the longest side asked for: the small world, then "480p" and "720p" of the released configs.
BUCKETS: dict[int, tuple[tuple[int, int], ...]] = {
    64: ((64, 64),),
    96: ((96, 96),),
    720: ((400, 720), (720, 720), (720, 400)),
    1280: ((720, 720), (528, 960), (960, 528), (720, 1280), (1280, 720)),
}


def choose_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """The bucket of generation, see `nearest_bucket`. Raises ValueError for an unknown `longest`."""
    if longest not in BUCKETS:
        raise InputError(f"No image sizes for a longest side of {longest}; expected one of {sorted(BUCKETS)}.")
    return nearest_bucket(height, width, BUCKETS[longest])


def nearest_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) with the nearest height / width, as in upstream's `match_size`; among equal ones that of the
    nearest area. Latents for training and generation choose by this one rule."""

    def distance(bucket: tuple[int, int]) -> tuple[float, float]:
        ratio = abs(bucket[0] / bucket[1] - height / width)
        return round(ratio, 6), abs(log(bucket[0] * bucket[1]) - log(height * width))

    return min(buckets, key=distance)
