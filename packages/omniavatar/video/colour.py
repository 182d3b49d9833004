"""Colours that do not wander off over a long video: each chunk's end is pulled back to the picture it began from.

Shapes: F frames, H W picture; colours are RGB in [-1, 1].
"""

import torch
from torch import Tensor

# A stronger correction than this is a change of the scene, not drift.
LARGEST_GAIN = 1.25
LOOK = 13  # frames at the end of a chunk that are compared with the picture
STILL_SHARE = 0.6
FLAT = 0.01  # variance below which a channel is too even to tell a gain by: it then stays near 1


def hold_colours(frames: Tensor, picture: Tensor) -> Tensor:
    """Frames (3, F, H, W) whose colours go, evenly from the first frame to the last, back to those of `picture`.

    The first frame continues a chunk that ended in the right colours already, so a correction that began in full would
    be a jump at every join.
    """
    gain, bias = colour_change(frames[:, -LOOK:], picture)
    share = torch.arange(1, frames.shape[1] + 1, device=frames.device) / frames.shape[1]
    gains = 1 + (gain - 1)[:, None] * share
    return (frames * gains[..., None, None] + (bias[:, None] * share)[..., None, None]).clamp(-1, 1)


def colour_change(frames: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Gain (3,) and bias (3,) per channel that bring the mean of frames (3, F, H, W) closest to `picture` (3, H, W).

    Least squares over the 60 % of pixels that differ least: background and clothes stand still while a person talks,
    and what moved or opened must not pass for a change of colour.
    """
    now, then = frames.mean(dim=1).flatten(1), picture.flatten(1).to(frames)
    apart = (now - then).abs().sum(dim=0)
    still = apart.argsort()[: max(1, int(STILL_SHARE * len(apart)))]
    now, then = now[:, still], then[:, still]
    centred = now - now.mean(dim=1, keepdim=True)
    slope = ((centred * then).mean(dim=1) + FLAT) / (centred.square().mean(dim=1) + FLAT)
    gain = slope.clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    return gain, then.mean(dim=1) - gain * now.mean(dim=1)
