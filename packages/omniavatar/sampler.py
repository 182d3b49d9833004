"""One chunk: from noise to latents, guided by text and by sound.

Shapes: B batch, T latent frames, h w latent size, k prefix latents, F = 4(T - 1) + 1 pixel frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from omniavatar.flow import TIMESTEPS, euler_step, sigma_schedule
from omniavatar.transformer import AvatarTransformer


class Pass(NamedTuple):
    """One forward of guidance: its weight in the sum, and whether it gets the prompt and the sound."""

    weight: float
    text: bool
    sound: bool


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scales. With A = negative text and silence, B = text and silence, C = text and sound:

    v = A + text (B - A) + audio (C - B). Source: wan_video.py. A pass whose weight is zero is not computed: equal
    scales take two passes (A and C), text = 1 two (B and C: audio guidance alone), both 1 a single one.
    Steps before the share `start` of all and from `stop` on are not guided: C alone. `batched`: the passes of a step
    are one forward of a larger batch.
    """

    text: float = 4.5
    audio: float = 4.5
    start: float = 0.0
    stop: float = 1.0
    batched: bool = False

    def passes(self, hears: bool, share: float = 0.0) -> list[Pass]:
        """Passes of non-zero weight for the step at this share of all; without sound only the text counts."""
        if not self.start <= share < self.stop:
            return [Pass(1.0, True, hears)]
        if not hears:
            every = [Pass(1 - self.text, False, False), Pass(self.text, True, False)]
        else:
            every = [
                Pass(1 - self.text, False, False),
                Pass(self.text - self.audio, True, False),
                Pass(self.audio, True, True),
            ]
        return [taken for taken in every if taken.weight != 0]


@torch.inference_mode()
def denoise(
    model: AvatarTransformer,
    noise: Tensor,
    text: Tensor,
    negative_text: Tensor,
    condition: Tensor | None,
    audio: Tensor | None,
    prefix: Tensor | None,
    steps: int,
    shift: float,
    guidance: Guidance,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Solve the flow from noise (B, 16, T, h, w) to clean latents of the same shape by Euler steps, in float32.

    text and negative_text (B, n, D); condition (B, 17, T, h, w) or None for the plain base; audio (B, F, C) or None;
    prefix (B, 16, k, h, w) clean latents or None: they replace the first k frames before every step and after the last
    (the noise there never matters, the timestep is the same for all frames). Silence in guidance is zeros in place of
    the wav2vec2 states, as in training; where `audio` is nothing but zeros, the passes with and without it are one.
    Source: paper section 3.4, wan_video.py. `on_step` is called after each step.
    """
    hears = audio is not None and bool(audio.any())
    silence = torch.zeros_like(audio) if audio is not None else None

    def inputs(taken: Pass) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return text if taken.text else negative_text, condition, audio if taken.sound else silence

    latents = _hold(noise.float(), prefix)
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_schedule(steps, shift).tolist())):
        timestep = torch.full((len(latents),), sigma * TIMESTEPS, device=latents.device)
        passes = guidance.passes(hears, step / steps)
        given = [inputs(taken) for taken in passes]
        velocities = (_together if guidance.batched else _one_by_one)(model, latents, timestep, given)
        velocity = torch.zeros_like(latents)
        for taken, out in zip(passes, velocities, strict=True):
            velocity += taken.weight * out
        latents = _hold(euler_step(latents, velocity, sigma, next_sigma), prefix)
        on_step()
    return latents


Given = list[tuple[Tensor, Tensor | None, Tensor | None]]  # text, condition and audio of each pass


def _one_by_one(model: AvatarTransformer, latents: Tensor, timestep: Tensor, given: Given) -> list[Tensor]:
    return [model(latents, timestep, *inputs).float() for inputs in given]


def _together(model: AvatarTransformer, latents: Tensor, timestep: Tensor, given: Given) -> list[Tensor]:
    joined = [None if parts[0] is None else torch.cat(parts) for parts in zip(*given, strict=True)]
    times = len(given)
    return list(model(latents.repeat(times, 1, 1, 1, 1), timestep.repeat(times), *joined).float().chunk(times))


def _hold(latents: Tensor, prefix: Tensor | None) -> Tensor:
    if prefix is None:
        return latents
    return torch.cat([prefix.to(latents.dtype), latents[:, :, prefix.shape[2] :]], dim=2)
