"""One chunk: from noise to latents, guided by text and by sound.

Shapes: B batch, T latent frames, h w latent size, k prefix latents, F = 4(T - 1) + 1 pixel frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from omniavatar.flow import TIMESTEPS, euler_step, sigma_schedule
from omniavatar.transformer import AvatarTransformer


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scales. With A = negative text and silence, B = text and silence, C = text and sound:

    v = A + text (B - A) + audio (C - B). Source: wan_video.py. A pass whose weight is zero is not computed: equal
    scales take two passes (A and C), text = 1 two (B and C: audio guidance alone), both 1 a single one.
    """

    text: float = 4.5
    audio: float = 4.5

    def passes(self, hears: bool) -> list[tuple[float, bool, bool]]:
        """[(weight, takes the text, takes the sound)] with non-zero weights; without sound only the text counts."""
        if not hears:
            every = [(1 - self.text, False, False), (self.text, True, False)]
        else:
            every = [(1 - self.text, False, False), (self.text - self.audio, True, False), (self.audio, True, True)]
        return [taken for taken in every if taken[0] != 0]


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
    the wav2vec2 states, as in training. Source: paper section 3.4, wan_video.py. `on_step` is called after each step.
    """
    passes = guidance.passes(audio is not None)
    silence = torch.zeros_like(audio) if audio is not None else None
    latents = _hold(noise.float(), prefix)
    for sigma, next_sigma in pairwise(sigma_schedule(steps, shift).tolist()):
        timestep = torch.full((len(latents),), sigma * TIMESTEPS, device=latents.device)
        velocity = torch.zeros_like(latents)
        for weight, with_text, with_sound in passes:
            words, sound = text if with_text else negative_text, audio if with_sound else silence
            velocity += weight * model(latents, timestep, words, condition, sound).float()
        latents = _hold(euler_step(latents, velocity, sigma, next_sigma), prefix)
        on_step()
    return latents


def _hold(latents: Tensor, prefix: Tensor | None) -> Tensor:
    if prefix is None:
        return latents
    return torch.cat([prefix.to(latents.dtype), latents[:, :, prefix.shape[2] :]], dim=2)
