"""How one chunk hands over to the next: what is carried, how colours are held, how the shared frames fade.

Shapes: F pixel frames, H W picture, T latent frames, h w latent size, k prefix latents.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omniavatar.config import GenerateConfig
from omniavatar.encoders.vae import WanVAE
from omniavatar.model.audio_pack import FRAMES_PER_LATENT
from omniavatar.video.chunks import Chunk, latent_length
from omniavatar.video.images import to_frames

# Latents decoded again before the prefix where latents are carried: a causal decoder that begins at the prefix itself
# takes its first latent for a single picture.
LATENT_CONTEXT = 4


class MadeChunk(NamedTuple):
    """A finished chunk of one video: the `shared` frames (n, H, W, 3) uint8 that the chunk before has made too, the
    `frames` behind them, and the `tail` that the next begins with: pixels (3, overlap, H, W) in [-1, 1] or latents
    (16, up to k + 4, h, w)."""

    frames: np.ndarray
    shared: np.ndarray
    tail: Tensor


def next_prefix(vae: WanVAE, tail: Tensor, config: GenerateConfig) -> Tensor:
    """Prefix latents (1, 16, k, h, w) of the chunk after one that left `tail`: the paper's latents as they are, or, as
    the released code does, pixels encoded again."""
    tail = tail[None].to(vae.mean.device)
    return tail[:, :, -latent_length(config.overlap) :] if config.overlap_kind == "latent" else vae.encode(tail)


def finish_chunk(
    vae: WanVAE, latents: Tensor, chunk: Chunk, tail: Tensor | None, picture: Tensor, config: GenerateConfig
) -> MadeChunk:
    """Decode latents (1, 16, T, h, w) of a chunk behind one that left `tail` (None: the first); `picture` (3, H, W) is
    the reference that colours are held to. The first chunk's frame 0, the reference, comes along if it is kept."""
    stream = latents
    if tail is not None and config.overlap_kind == "latent":
        stream = torch.cat([tail[None].to(latents), latents[:, :, chunk.prefix_latents :]], dim=2)
    video = vae.decode(stream)[0].float()
    given, new = video[:, : -chunk.new_frames], video[:, -chunk.new_frames :]
    if config.colour_match == "reference":
        new = hold_colours(new, picture)
    whole = torch.cat([given, new], dim=1)
    first = 0 if tail is None and config.keep_reference else given.shape[1] + chunk.remade
    # The last frames are not handed on: the next chunk makes them itself, and one fades into the other there.
    if config.overlap_kind == "latent":
        known = stream[0, :, : stream.shape[2] - config.blend // FRAMES_PER_LATENT]
        left = known[:, -(latent_length(config.overlap) + LATENT_CONTEXT) :]
    else:
        left = whole[:, : whole.shape[1] - config.blend][:, -config.overlap :]
    return MadeChunk(to_frames(whole[:, first:]), to_frames(new[:, : chunk.remade]), left.float().cpu())


def fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Frames (n, H, W, 3) uint8 that turn evenly from those of the chunk before into those of the chunk after.

    Both were made for the same sound behind the same frames, so they differ by little and nothing is seen double.
    """
    weight = (np.arange(1, len(before) + 1, dtype=np.float32) / (len(before) + 1))[:, None, None, None]
    return np.rint(before * (1 - weight) + after * weight).astype(np.uint8)


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
