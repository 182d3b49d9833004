"""The job of a config where only the image, or not even that, is known."""

from omniavatar.config import GenerateConfig
from omniavatar.planning.memory import Job, job_of
from omniavatar.video.buckets import BUCKETS, choose_size
from omniavatar.video.chunks import frames_for_tokens


def job_for(
    config: GenerateConfig,
    image: tuple[int, int] | None = None,
    seconds: float = 60.0,
    audio: bool = True,
    frames: int = 0,
    batch: int = 1,
) -> Job:
    """The job of a config for an image of this height and width, or of the largest size that it chooses for any; for
    `frames` at a time where these are not its own. Without `audio` it is the plain base's. Raises InputError."""
    height, width = _size(config, image)
    length = frames or config.chunk_frames or frames_for_tokens(config.max_tokens, height, width)
    return job_of(config, height, width, length, seconds, audio, batch)


def _size(config: GenerateConfig, image: tuple[int, int] | None) -> tuple[int, int]:
    if config.height and config.width:
        return config.height, config.width
    if image is None and config.longest_side in BUCKETS:
        return max(BUCKETS[config.longest_side], key=lambda size: size[0] * size[1])
    return choose_size(*(image or (1, 1)), config.longest_side)
