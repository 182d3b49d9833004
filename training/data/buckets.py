"""Buckets: the window of a clip that is trained, clips of one shape, and an account of what is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from training.config import DataConfig

PIXELS = 8  # of a frame, per latent pixel and side


class Bucket(NamedTuple):
    """Shape shared by the samples of a micro-batch: latent height and width, latent frames of the window."""

    height: int
    width: int
    frames: int

    @property
    def tokens(self) -> int:
        """Video tokens of one sample."""
        return self.frames * tokens_per_frame(self.height, self.width)


@dataclass(frozen=True)
class Account:
    """Clips of a split and their latent frames, used and left out by reason.

    clips = used + too_large + too_short + over_cap; latent_frames = used_frames + unused_frames + cut_by_length +
    cut_by_cap.
    """

    clips: int = 0
    used: int = 0
    too_large: int = 0  # clips with a side longer than `longest_side`
    too_short: int = 0  # clips shorter than the shortest window
    over_cap: int = 0  # clips too large in height and width for any window within the cap
    latent_frames: int = 0
    used_frames: int = 0
    unused_frames: int = 0  # of clips that are left out
    cut_by_length: int = 0  # ends beyond `max_latents`, or between two durations
    cut_by_cap: int = 0  # ends beyond the token cap


def tokens_per_frame(height: int, width: int) -> int:
    """Tokens of one latent frame of a latent size, after 2 x 2 patches."""
    return (height // 2) * (width // 2)


def token_cap(height: int, width: int, max_tokens: int, rule: Literal["strict", "official"]) -> int:
    """Latent frames allowed at a latent size (height, width).

    `strict` never exceeds max_tokens. `official` is the arithmetic of the released scripts/inference.py: it caps video
    frames before rounding them to 4k+1 and so may exceed the cap by one latent frame.
    """
    per_frame = tokens_per_frame(height, width)
    if rule == "strict":
        return max_tokens // per_frame
    raw = 4 * max_tokens // per_frame
    frames = raw // 4 * 4 + 1 if raw % 4 else raw - 3
    return (frames + 3) // 4


def window_bucket(height: int, width: int, frames: int, config: DataConfig) -> Bucket:
    """Bucket of a clip of that whole latent size: its window starts with the clip and is cut at the end.

    0 frames: no window of the clip may be used.
    """
    if 0 < config.longest_side < PIXELS * max(height, width):
        return Bucket(height, width, 0)
    room = min(_capped_length(frames, config), token_cap(height, width, config.max_tokens, config.token_rule))
    window = max((length for length in config.durations if length <= room), default=0) if config.durations else room
    return Bucket(height, width, window if window >= config.min_latents else 0)


def account_of(sizes: Mapping[Bucket, int], config: DataConfig) -> Account:
    """The account of clips, given as counts by whole size."""
    counts: dict[str, int] = dict.fromkeys(vars(Account()), 0)
    for size, clips in sizes.items():
        for name, amount in _account_of_clip(size, config).items():
            counts[name] += clips * amount
    return Account(**counts)


def _account_of_clip(size: Bucket, config: DataConfig) -> dict[str, int]:
    """The account of one clip."""
    window = window_bucket(*size, config).frames
    whole = {"clips": 1, "latent_frames": size.frames}
    if not window:
        return whole | {_reason(size, config): 1, "unused_frames": size.frames}
    length = _capped_length(size.frames, config)
    allowed = min(length, token_cap(size.height, size.width, config.max_tokens, config.token_rule))
    cut = {"cut_by_length": (size.frames - length) + (allowed - window), "cut_by_cap": length - allowed}
    return whole | {"used": 1, "used_frames": window} | cut


def _reason(size: Bucket, config: DataConfig) -> str:
    if 0 < config.longest_side < PIXELS * max(size.height, size.width):
        return "too_large"
    shortest = max(config.min_latents, min(config.durations, default=0))
    return "too_short" if _capped_length(size.frames, config) < shortest else "over_cap"


def _capped_length(frames: int, config: DataConfig) -> int:
    return min(frames, config.max_latents or frames)
