"""Conditions of a video, encoded once, and the sampling of one chunk from them.

Shapes: B videos of a batch, T latent frames, h w latent size, n text tokens, D text width, C audio width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.constants import FRAMES_PER_LATENT, SAMPLES_PER_FRAME
from common.errors import InputError
from common.heap import release_heap
from omniavatar.config import GenerateConfig
from omniavatar.encoders.text import pad_text
from omniavatar.model.residual_cache import modulation_changes, plan_steps, polynomial_of
from omniavatar.model.transformer import build_condition
from omniavatar.models import AvatarModels
from omniavatar.video.buckets import choose_size
from omniavatar.video.chunks import FIRST_PREFIX, Chunk, ClipRequest
from omniavatar.video.images import fit_image
from omniavatar.video.sampler import Guidance, denoise


@dataclass(frozen=True)
class Scene:
    """Conditions shared by all chunks of a batch of B videos."""

    text: Tensor  # (B, n, D)
    negative_text: Tensor  # (B, n, D)
    images: Tensor  # (B, 3, H, W) in [-1, 1], fitted to the size
    reference: Tensor  # (B, 16, 1, h, w)
    audio: Tensor | None  # (B, 1 + frames, C), the first frame zero; None for the plain base


def frames_of(wave: np.ndarray) -> int:
    """Video frames of an audio wave: ceil(N / 640). Raises ValueError for a wave that is empty or not (N,)."""
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"Audio of shape {wave.shape}; expected (samples,) of mono 16 kHz, not empty.")
    return math.ceil(len(wave) / SAMPLES_PER_FRAME)


def frame_size(models: AvatarModels, image: np.ndarray, config: GenerateConfig) -> tuple[int, int]:
    """Height and width of the video in pixels. Raises ValueError for sizes the networks do not support."""
    size = config.height, config.width
    if size == (0, 0):
        size = choose_size(image.shape[0], image.shape[1], config.longest_side)
    if any(side <= 0 or side % models.size_unit for side in size):
        raise InputError(f"Image size {size[0]}x{size[1]}; expected positive multiples of {models.size_unit}.")
    return size


def prepare(models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig, frames: int) -> Scene:
    """Encode text, image, and the audio padded with silence to `frames`. Raises what the encoders raise."""
    height, width = frame_size(models, requests[0].image, config)
    texts = models.text_encoder.encode([*(request.prompt for request in requests), config.negative_prompt])
    text = pad_text(texts, models.text_encoder.text_length).to(models.device)
    images = torch.stack([fit_image(request.image, height, width) for request in requests]).to(models.device)
    audio = None
    if models.transformer.has_audio:
        states = torch.stack([_encode_audio(models, request.wave, frames) for request in requests])
        audio = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1).to(models.device)
    reference = models.vae.encode(images[:, :, None])
    release_heap()  # what the encoders freed makes room for sampling
    return Scene(
        text=text[:-1],
        negative_text=text[-1:].expand(len(requests), -1, -1),
        images=images,
        reference=reference,
        audio=audio,
    )


def _encode_audio(models: AvatarModels, wave: np.ndarray, frames: int) -> Tensor:
    if not wave.any():
        return torch.zeros(frames, models.audio_encoder.feature_dim)
    return models.audio_encoder.encode(wave, frames).cpu()


def sample_chunk(
    models: AvatarModels,
    scene: Scene,
    chunk: Chunk,
    prefix: Tensor,
    seeds: Sequence[int],
    config: GenerateConfig,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Latents (B, 16, T, h, w) of one chunk that starts with `prefix` (B, 16, k, h, w), with one seed per video."""
    channels, _, height, width = scene.reference.shape[1:]
    noise = torch.stack([_noise_of(chunk, seed, (channels, height, width)) for seed in seeds]).to(models.device)
    # One zero frame precedes the audio, so the chunk's window starts one frame later in this tensor.
    first = chunk.audio_start - chunk.prefix_frames + FIRST_PREFIX
    audio = None if scene.audio is None else scene.audio[:, first : first + chunk.frames]
    conditioned = audio is not None  # the plain base takes the text alone
    condition = build_condition(scene.reference, chunk.latent_frames, chunk.prefix_latents) if conditioned else None
    return denoise(
        models.transformer,
        noise,
        scene.text,
        scene.negative_text,
        condition=condition,
        audio=audio,
        prefix=prefix if conditioned else None,
        steps=config.steps,
        shift=config.shift,
        guidance=Guidance(
            config.text_guidance,
            config.audio_guidance,
            config.guidance_from,
            config.guidance_to,
            config.batched_guidance,
        ),
        on_step=on_step,
        computed=_computed_steps(models, config),
        branch_group=models.branch_group,
    )


def _computed_steps(models: AvatarModels, config: GenerateConfig) -> list[bool] | None:
    if not config.cache_threshold:
        return None
    polynomial = config.cache_polynomial or polynomial_of(models.transformer)
    changes = modulation_changes(models.transformer, config.steps, config.shift)
    return plan_steps(changes, config.cache_threshold, polynomial)


def _noise_of(chunk: Chunk, seed: int, size: tuple[int, int, int]) -> Tensor:
    """Noise (16, T, h, w) of a chunk of this `size` (16, h, w). Frames generated twice start from the noise of the
    previous chunk: both versions then look much alike and can be faded."""
    channels, height, width = size
    # A shortened chunk starts with the noise of the full one; the previous chunk is always full.
    shape = (channels, chunk.full_latent_frames, height, width)
    noise, remade = chunk_noise(seed, chunk.index, shape), chunk.remade // FRAMES_PER_LATENT
    if remade:
        noise[:, chunk.prefix_latents :][:, :remade] = chunk_noise(seed, chunk.index - 1, shape)[:, -remade:]
    return noise[:, : chunk.latent_frames]


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one chunk, the same on every device and in any order of chunks."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + chunk)
    return torch.randn(shape, generator=generator)
