"""Training objective: draw randomness, assemble the batch, compute the loss.

Shapes: B samples, T latent frames, F = 4 (T - 1) + 1 video frames, h w latent size, C audio width, D text width.
Each rule of the paper's section 3 (and of the authors' answers, spec section 4.2) is one small function.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omniavatar.encoders.text import pad_text
from omniavatar.model.flow import add_noise, draw_sigma, loss_weight, velocity_target
from omniavatar.model.transformer import build_condition
from training.config import ObjectiveConfig
from training.data.windows import MicroBatch, Sample


@dataclass(frozen=True)
class Draw:
    """Random draws of one sample; `noise` is (16, T, h, w)."""

    sigma: float
    prefix: int
    reference: int
    drop_audio: bool
    drop_text: bool
    zero_first_audio: bool
    noise: np.ndarray


@dataclass(frozen=True)
class Batch:
    """A micro-batch as model input. `condition` and `audio` are None for plain text-to-video."""

    clean: Tensor  # (B, 16, T, h, w)
    noise: Tensor  # (B, 16, T, h, w)
    sigma: Tensor  # (B,)
    prefix: Tensor  # (B,) clean latent frames at the start
    text: Tensor  # (B, n, D)
    condition: Tensor | None  # (B, 17, T, h, w)
    audio: Tensor | None  # (B, F, C)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return replace(self, **moved)


class Velocity(Protocol):
    """The model's call: (latents, timestep, text, condition, audio) -> velocity (B, 16, T, h, w)."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None, audio: Tensor | None
    ) -> Tensor: ...


# -- randomness -------------------------------------------------------------------------------------------------------


def draw(config: ObjectiveConfig, seed: int, position: int, sample: Sample) -> Draw:
    """All random draws of a sample, a function of seed and position alone: the same at any number of ranks.

    Everything is drawn in a fixed order, used or not, so that changing one rate does not change the other draws.
    """
    rng = np.random.default_rng((seed, 1, position))
    sigma = draw_time(rng, config)
    prefix = draw_prefix(rng, config.prefix, sample.latents.shape[1])
    reference = draw_reference(rng, config.first_reference, len(sample.references))
    drop_audio = flip(rng, config.audio_dropout)
    drop_text = flip(rng, config.text_dropout)
    zero_first = flip(rng, config.zero_first_audio) and prefix == 1
    noise = rng.standard_normal(tuple(sample.latents.shape), dtype=np.float32)
    return Draw(sigma, prefix, reference, drop_audio, drop_text, zero_first, noise)


def flip(rng: np.random.Generator, rate: float) -> bool:
    """True with probability `rate`."""
    return bool(rng.random() < rate)


def draw_time(rng: np.random.Generator, config: ObjectiveConfig) -> float:
    """Noise level sigma in [0, 1] after the shift (DiffSynth-Studio, flow-match scheduler)."""
    return float(draw_sigma(torch.tensor(rng.random()), config.shift, config.sigma))


def draw_prefix(rng: np.random.Generator, limits: tuple[int, int], frames: int) -> int:
    """Clean latent frames, uniform within `limits` (1..4 are 1, 5, 9, 13 video frames); at most `frames` - 1."""
    low, high = limits
    return min(int(rng.integers(low, high + 1)), frames - 1)


def draw_reference(rng: np.random.Generator, first_rate: float, count: int) -> int:
    """Which of the clip's `count` reference frames the model gets: the first one, or any."""
    first, any_frame = flip(rng, first_rate), int(rng.integers(count))
    return 0 if first else any_frame


# -- batch ------------------------------------------------------------------------------------------------------------


def make_batch(
    micro: MicroBatch, draws: list[Draw], empty_text: Tensor, text_length: int, plain: bool = False
) -> Batch:
    """Samples and their draws as one batch; `plain` leaves out image and audio (text-to-video).

    `empty_text` (n, D) replaces a dropped caption; captions are zero-padded to `text_length`, as Wan expects.
    """
    pairs = list(zip(micro.samples, draws, strict=True))
    text = [empty_text if draw.drop_text else sample.text for sample, draw in pairs]
    frames = micro.samples[0].latents.shape[1]
    references = [sample.references[draw.reference] for sample, draw in pairs]
    prefix = torch.tensor([0 if plain else draw.prefix for draw in draws])
    return Batch(
        clean=torch.stack([sample.latents for sample in micro.samples]),
        noise=torch.from_numpy(np.stack([draw.noise for draw in draws])),
        sigma=torch.tensor([draw.sigma for draw in draws], dtype=torch.float32),
        prefix=prefix,
        text=pad_text(text, text_length),
        condition=None if plain else build_condition(torch.stack(references)[:, :, None], frames, prefix),
        audio=None if plain else torch.stack([audio_input(sample.audio, draw) for sample, draw in pairs]),
    )


def audio_input(audio: Tensor, draw: Draw) -> Tensor:
    """Audio features (F, C) as model input: all zeros when dropped, or with a zero first frame."""
    if draw.drop_audio:
        return torch.zeros_like(audio)
    if draw.zero_first_audio:
        return torch.cat([torch.zeros_like(audio[:1]), audio[1:]])
    return audio


# -- loss -------------------------------------------------------------------------------------------------------------


def sample_losses(model: Velocity, batch: Batch, config: ObjectiveConfig) -> Tensor:
    """Flow-matching loss of each sample (B,): mean squared velocity error after the prefix, weighted by sigma.

    The prefix latents stay clean while the timestep is that of the noisy ones, as at inference.
    """
    in_loss = after_prefix(batch.prefix, batch.clean.shape[2])
    is_prefix = ~in_loss[:, None, :, None, None]
    noisy = torch.where(is_prefix, batch.clean, add_noise(batch.clean, batch.noise, batch.sigma))
    velocity = model(noisy, 1000 * batch.sigma, batch.text, batch.condition, batch.audio)
    error = (velocity.float() - velocity_target(batch.clean, batch.noise)).square().mean(dim=(1, 3, 4))  # (B, T)
    losses = torch.where(in_loss, error, 0.0).sum(1) / in_loss.sum(1)
    return losses * loss_weight(batch.sigma, config.shift) if config.weighting == "bell" else losses


def after_prefix(prefix: Tensor, frames: int) -> Tensor:
    """(B, T) bool: the latent frames that each sample's loss is taken over, for prefix (B,)."""
    return torch.arange(frames, device=prefix.device) >= prefix[:, None]
