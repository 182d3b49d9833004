"""Hand-over from one chunk to the next: the prefix carried over, colour correction, and the fade of shared frames.

Shapes: F pixel frames, H W frame size, T latent frames, h w latent size, k prefix latents.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.constants import FRAMES_PER_LATENT
from omniavatar.config import GenerateConfig
from omniavatar.encoders.vae import WanVAE
from omniavatar.video.chunks import Chunk, latent_length
from omniavatar.video.images import to_frames

# Latents decoded again before the prefix where latents are carried over: a causal decoder that started at the prefix
# itself would decode its first latent as a single image.
LATENT_CONTEXT = 4


class FinishedChunk(NamedTuple):
    """A decoded chunk of one video: the `shared` frames (n, H, W, 3) uint8 that the previous chunk generated too, the
    `frames` after them, and the `tail` that the next chunk starts from: pixels (3, overlap, H, W) in [-1, 1] or latents
    (16, up to k + 4, h, w)."""

    frames: np.ndarray
    shared: np.ndarray
    tail: Tensor


def next_prefix(vae: WanVAE, tail: Tensor, config: GenerateConfig) -> Tensor:
    """Prefix latents (1, 16, k, h, w) of the chunk after the one that left `tail`: its latents as in the paper, or its
    pixels encoded again as in the released code."""
    tail = tail[None].to(vae.mean.device)
    return tail[:, :, -latent_length(config.overlap) :] if config.overlap_kind == "latent" else vae.encode(tail)


def finish_chunk(
    vae: WanVAE, latents: Tensor, chunk: Chunk, tail: Tensor | None, image: Tensor, config: GenerateConfig
) -> FinishedChunk:
    """Decode latents (1, 16, T, h, w) of a chunk that follows one with this `tail` (None: the first chunk) and correct
    its colours towards `image` (3, H, W), the reference. With `keep_reference` the first chunk keeps its frame 0."""
    stream = latents
    if tail is not None and config.overlap_kind == "latent":
        stream = torch.cat([tail[None].to(latents), latents[:, :, chunk.prefix_latents :]], dim=2)
    video = vae.decode(stream)[0].float()
    prefix, new = video[:, : -chunk.new_frames], video[:, -chunk.new_frames :]
    if config.colour_match == "reference":
        new = correct_colours(new, image)
    whole = torch.cat([prefix, new], dim=1)
    first = 0 if tail is None and config.keep_reference else prefix.shape[1] + chunk.remade
    # The last `blend` frames are not carried over: the next chunk generates them itself, and the two versions are
    # faded. (The tail of the last chunk, which may be shorter than that, is not used.)
    if config.overlap_kind == "latent":
        carried = stream[0, :, : stream.shape[2] - config.blend // FRAMES_PER_LATENT]
        next_tail = carried[:, -(latent_length(config.overlap) + LATENT_CONTEXT) :]
    else:
        next_tail = whole[:, : whole.shape[1] - config.blend][:, -config.overlap :]
    return FinishedChunk(to_frames(whole[:, first:]), to_frames(new[:, : chunk.remade]), next_tail.float().cpu())


def fade(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Frames (n, H, W, 3) uint8 that fade linearly from those of the previous chunk to those of the next.

    Both were generated for the same audio after the same frames, so they differ little and no ghosting is visible.
    """
    weight = (np.arange(1, len(before) + 1, dtype=np.float32) / (len(before) + 1))[:, None, None, None]
    return np.rint(before * (1 - weight) + after * weight).astype(np.uint8)


LARGEST_GAIN = 1.25  # a larger correction would undo a change of the scene, not drift
COMPARED_FRAMES = 13  # at the end of a chunk, compared with the reference
STILL_SHARE = 0.6
FLAT_VARIANCE = 0.01  # a channel of less variance is too even to estimate a gain from: it then stays near 1


def correct_colours(frames: Tensor, image: Tensor) -> Tensor:
    """Frames (3, F, H, W) corrected towards the colours of `image` (3, H, W), linearly from the first frame (not at
    all) to the last (fully).

    The first frame continues a chunk that was corrected at its end, so a full correction there would be a jump.
    """
    gain, bias = colour_change(frames[:, -COMPARED_FRAMES:], image)
    share = torch.arange(1, frames.shape[1] + 1, device=frames.device) / frames.shape[1]
    gains = 1 + (gain - 1)[:, None] * share
    return (frames * gains[..., None, None] + (bias[:, None] * share)[..., None, None]).clamp(-1, 1)


def colour_change(frames: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Gain (3,) and bias (3,) per channel that bring the mean of frames (3, F, H, W) closest to `image` (3, H, W).

    Least squares over the 60 % of pixels that differ least: background and clothes stand still while a person talks,
    and motion must not be taken for a change of colour.
    """
    current, target = frames.mean(dim=1).flatten(1), image.flatten(1).to(frames)
    difference = (current - target).abs().sum(dim=0)
    still = difference.argsort()[: max(1, int(STILL_SHARE * len(difference)))]
    current, target = current[:, still], target[:, still]
    centred = current - current.mean(dim=1, keepdim=True)
    slope = ((centred * target).mean(dim=1) + FLAT_VARIANCE) / (centred.square().mean(dim=1) + FLAT_VARIANCE)
    gain = slope.clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    return gain, target.mean(dim=1) - gain * current.mean(dim=1)
