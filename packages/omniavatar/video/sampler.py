"""One chunk: from noise to latents, guided by text and by sound.

Shapes: B batch, T latent frames, h w latent size, k prefix latents, F = 4(T - 1) + 1 pixel frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from omniavatar.model.cache import CachedAudio, CachedText, KeptResidual
from omniavatar.model.flow import TIMESTEPS, euler_step, sigma_schedule
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.sequence import SequenceGroup


class Branch(NamedTuple):
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

    def passes(self, has_audio: bool, share: float = 0.0) -> list[Branch]:
        """Passes of non-zero weight for the step at this share of all; without sound only the text counts."""
        if not self.start <= share < self.stop:
            return [Branch(1.0, True, has_audio)]
        if not has_audio:
            every = [Branch(1 - self.text, False, False), Branch(self.text, True, False)]
        else:
            every = [
                Branch(1 - self.text, False, False),
                Branch(self.text - self.audio, True, False),
                Branch(self.audio, True, True),
            ]
        return [taken for taken in every if taken.weight != 0]


def branches_for_rank(passes: Sequence[Branch], rank: int, size: int) -> list[Branch]:
    """The passes of a step that one of `size` processes computes. Dealt from the last, which every step has, so that a
    kind of pass, with what is kept of it, stays with one process."""
    return list(passes[::-1][rank::size])


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
    computed: Sequence[bool] | None = None,
    branches: SequenceGroup | None = None,
) -> Tensor:
    """Solve the flow from noise (B, 16, T, h, w) to clean latents of the same shape by Euler steps, in float32.

    text and negative_text (B, n, D); condition (B, 17, T, h, w) or None for the plain base; audio (B, F, C) or None;
    prefix (B, 16, k, h, w) clean latents or None: they replace the first k frames before every step and after the last
    (the noise there never matters, the timestep is the same for all frames). Silence in guidance is zeros in place of
    the wav2vec2 states, as in training; where `audio` is nothing but zeros, the passes with and without it are one.
    Source: paper section 3.4, wan_video.py. `on_step` is called after each step. Where `computed` of a step is False,
    a pass takes what the blocks added at its last computed one (residual_cache.py); None computes all. Processes of
    `branches` take the passes of a step in turn, and each gets their sum: of two or three, that many keep busy.
    """
    has_audio = audio is not None and bool(audio.any())
    forwards = _Forwards(text, negative_text, condition, audio, keeps_residuals=computed is not None)
    latents = _hold(noise.float(), prefix)
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_schedule(steps, shift).tolist())):
        timestep = torch.full((len(latents),), sigma * TIMESTEPS, device=latents.device)
        passes = guidance.passes(has_audio, step / steps)
        reuse = computed is not None and not computed[step]
        own = passes if branches is None else branches_for_rank(passes, branches.rank, branches.size)
        velocity = torch.zeros_like(latents)
        for group in [own] if guidance.batched and own else [[taken] for taken in own]:
            times = len(group)
            given = forwards.of(group, reuse)
            out = model(latents.repeat(times, 1, 1, 1, 1), timestep.repeat(times), *given).float()
            for taken, part in zip(group, out.chunk(times), strict=True):
                velocity += taken.weight * part
        if branches is not None:
            velocity = branches.total(velocity)
        latents = _hold(euler_step(latents, velocity, sigma, next_sigma), prefix)
        on_step()
    return latents


class _Forwards:
    """What the network is given beside latents and timestep for one pass, or for several in a batch: the same at each
    step, and kept from one to the next."""

    def __init__(
        self,
        text: Tensor,
        negative_text: Tensor,
        condition: Tensor | None,
        audio: Tensor | None,
        keeps_residuals: bool,
    ) -> None:
        self._condition = condition
        self._text = cache(
            lambda asked: CachedText(torch.cat([text if with_it else negative_text for with_it in asked]))
        )
        self._sound = cache(lambda asked: CachedAudio(torch.cat([_or_silence(audio, with_it) for with_it in asked])))
        self._residual = cache(lambda asked: KeptResidual())
        self._hears, self._keeps_residuals = audio is not None, keeps_residuals

    def of(self, group: Sequence[Branch], reuse: bool) -> tuple[object, ...]:
        """Text, condition, sound and residual of a group of passes; with `reuse` the residual stands in for blocks."""
        texts, sounds = tuple(taken.text for taken in group), tuple(taken.sound for taken in group)
        condition = None if self._condition is None else self._condition.repeat(len(group), 1, 1, 1, 1)
        residual = self._residual((texts, sounds))
        residual.reuse = reuse
        kept = residual if self._keeps_residuals else None
        return self._text(texts), condition, self._sound(sounds) if self._hears else None, kept


def _or_silence(audio: Tensor | None, with_it: bool) -> Tensor:
    assert audio is not None
    return audio if with_it else torch.zeros_like(audio)


def _hold(latents: Tensor, prefix: Tensor | None) -> Tensor:
    if prefix is None:
        return latents
    return torch.cat([prefix.to(latents.dtype), latents[:, :, prefix.shape[2] :]], dim=2)
