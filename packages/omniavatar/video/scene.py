"""What conditions a video, encoded once, and the one chunk that is sampled from it.

Shapes: B videos of a batch, T latent frames, h w latent size, n text tokens, D text width, C audio width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from common.errors import InputError
from omniavatar.config import GenerateConfig
from omniavatar.encoders.text import pad_text
from omniavatar.model.audio_pack import FRAMES_PER_LATENT
from omniavatar.model.residual_cache import modulation_changes, plan_steps, polynomial_of
from omniavatar.model.transformer import build_condition
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import FIRST_PREFIX, Chunk
from omniavatar.video.images import choose_size, fit_image
from omniavatar.video.sampler import Guidance, denoise


class ClipRequest(NamedTuple):
    """One video to make: uint8 RGB image (H, W, 3), mono 16 kHz wave (N,), prompt; `seed` None takes the config's.

    A wave of nothing but zeros is a sound that was dropped: the model gets zeros in place of wav2vec2 states, as in
    training, and audio guidance has nothing to do.
    """

    image: np.ndarray
    wave: np.ndarray
    prompt: str
    seed: int | None = None


@dataclass(frozen=True)
class Scene:
    """What stays the same over the chunks of a batch of B videos."""

    text: Tensor  # (B, n, D)
    negative_text: Tensor  # (B, n, D)
    pictures: Tensor  # (B, 3, H, W) in [-1, 1], fitted to the size
    reference: Tensor  # (B, 16, 1, h, w)
    audio: Tensor | None  # (B, 1 + frames, C), the first frame zero; None for the plain base


def frames_of(wave: np.ndarray) -> int:
    """Video frames that a sound lasts: ceil(N / 640). Raises ValueError for one that is empty or not (N,)."""
    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"Sound of shape {wave.shape}; expected (samples,) of mono 16 kHz, not empty.")
    return math.ceil(len(wave) / SAMPLES_PER_FRAME)


def with_lead_in(wave: np.ndarray, config: GenerateConfig, rate: int = AUDIO_RATE) -> np.ndarray:
    """The sound (N,) behind the seconds of silence that the config puts before it."""
    return np.pad(wave, (round(config.lead_in * rate), 0)) if wave.ndim == 1 else wave


def frame_size(models: AvatarModels, image: np.ndarray, config: GenerateConfig) -> tuple[int, int]:
    """Height and width of the video. Raises ValueError for sizes the networks cannot make."""
    size = config.height, config.width
    if size == (0, 0):
        size = choose_size(image.shape[0], image.shape[1], config.longest_side)
    if any(side <= 0 or side % models.size_unit for side in size):
        raise InputError(f"Picture size {size[0]}x{size[1]}; expected positive multiples of {models.size_unit}.")
    return size


def seed_of(request: ClipRequest, config: GenerateConfig) -> int:
    """The request's own seed, or the config's."""
    return config.seed if request.seed is None else request.seed


def prepare(models: AvatarModels, requests: Sequence[ClipRequest], config: GenerateConfig, frames: int) -> Scene:
    """Encode text, picture, and the sound padded with silence to `frames`. Raises what the encoders raise."""
    height, width = frame_size(models, requests[0].image, config)
    words = models.text_encoder.encode([*(request.prompt for request in requests), config.negative_prompt])
    text = pad_text(words, models.text_encoder.text_length).to(models.device)
    pictures = torch.stack([fit_image(request.image, height, width) for request in requests]).to(models.device)
    audio = None
    if models.transformer.has_audio:
        states = torch.stack([_encode_audio(models, request.wave, frames) for request in requests])
        audio = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1).to(models.device)
    return Scene(
        text=text[:-1],
        negative_text=text[-1:].expand(len(requests), -1, -1),
        pictures=pictures,
        reference=models.vae.encode(pictures[:, :, None]),
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
    """Latents (B, 16, T, h, w) of one chunk that begins with `prefix` (B, 16, k, h, w), one seed per video."""
    channels, _, height, width = scene.reference.shape[1:]
    noise = torch.stack([_noise_of(chunk, seed, (channels, height, width)) for seed in seeds]).to(models.device)
    # One zero frame stands before the sound, so the chunk's window begins one frame later in this tensor.
    first = chunk.audio_start - chunk.prefix_frames + FIRST_PREFIX
    audio = None if scene.audio is None else scene.audio[:, first : first + chunk.frames]
    given = chunk.prefix_latents
    return denoise(
        models.transformer,
        noise,
        scene.text,
        scene.negative_text,
        condition=build_condition(scene.reference, chunk.latent_frames, given) if audio is not None else None,
        audio=audio,
        prefix=prefix if audio is not None else None,
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
        branches=models.branches,
    )


def _computed_steps(models: AvatarModels, config: GenerateConfig) -> list[bool] | None:
    if not config.cache_threshold:
        return None
    polynomial = config.cache_polynomial or polynomial_of(models.transformer)
    changes = modulation_changes(models.transformer, config.steps, config.shift)
    return plan_steps(changes, config.cache_threshold, polynomial)


def _noise_of(chunk: Chunk, seed: int, size: tuple[int, int, int]) -> Tensor:
    """Noise (16, T, h, w) of a chunk of this `size` (16, h, w). Frames that are made again have that of the chunk
    before: both then come out much alike, and one can turn into the other."""
    channels, height, width = size
    # A shortened chunk begins with the noise of the full one, which is also the length of the chunk before.
    shape = (channels, chunk.full_latent_frames, height, width)
    noise, again = chunk_noise(seed, chunk.index, shape), chunk.remade // FRAMES_PER_LATENT
    if again:
        noise[:, chunk.prefix_latents :][:, :again] = chunk_noise(seed, chunk.index - 1, shape)[:, -again:]
    return noise[:, : chunk.latent_frames]


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one chunk, the same on every device and in whatever order chunks are made."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + chunk)
    return torch.randn(shape, generator=generator)
