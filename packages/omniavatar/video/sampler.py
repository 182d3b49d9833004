"""Euler sampler of one chunk with classifier-free guidance by text and audio.

Shapes: B batch, T latent frames, h w latent size, k prefix latents, F = 4(T - 1) + 1 pixel frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from omniavatar.model.cache import CachedAudio, CachedText, ResidualCache
from omniavatar.model.flow import TIMESTEPS, euler_step, sigma_schedule
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.sequence import SequenceGroup


class Branch(NamedTuple):
    """One forward pass of guidance: its weight in the sum, and whether it is conditioned on prompt and audio."""

    weight: float
    text: bool
    audio: bool


@dataclass(frozen=True)
class Guidance:
    """Scales of classifier-free guidance. With A = negative text and silence, B = text and silence, C = text and audio:

    v = A + text (B - A) + audio (C - B). Source: wan_video.py. Branches of zero weight are not computed: equal scales
    take two (A and C), text = 1 two (B and C: audio guidance alone), both 1 a single one. Only the steps from the
    fraction `start` of all to the fraction `stop` are guided, the others compute C alone. `batched`: the branches of a
    step are one forward pass of a larger batch.
    """

    text: float = 4.5
    audio: float = 4.5
    start: float = 0.0
    stop: float = 1.0
    batched: bool = False

    def branches(self, has_audio: bool, progress: float = 0.0) -> list[Branch]:
        """Branches of the step at this fraction of all steps; without audio only the text guides."""
        if not self.start <= progress < self.stop:
            return [Branch(1.0, True, has_audio)]
        if not has_audio:
            branches = [Branch(1 - self.text, False, False), Branch(self.text, True, False)]
        else:
            branches = [
                Branch(1 - self.text, False, False),
                Branch(self.text - self.audio, True, False),
                Branch(self.audio, True, True),
            ]
        return [branch for branch in branches if branch.weight != 0]


def branches_for_rank(branches: Sequence[Branch], rank: int, size: int) -> list[Branch]:
    """The branches of a step that one of `size` processes computes.

    They are dealt from the last one, which every step has, so that a kind of branch and its caches stay on one process.
    """
    return list(branches[::-1][rank::size])


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
    branch_group: SequenceGroup | None = None,
) -> Tensor:
    """Solve the flow from noise (B, 16, T, h, w) to clean latents of the same shape by Euler steps, in float32.

    text and negative_text (B, n, D); condition (B, 17, T, h, w) or None for the plain base; audio (B, F, C) or None;
    prefix (B, 16, k, h, w) clean latents or None: they replace the first k frames before every step and after the last
    (the noise there never matters, the timestep is the same for all frames). Silence in guidance is zeros in place of
    the wav2vec2 states, as in training; if `audio` is all zeros, branches with and without it are the same and one is
    computed. Source: paper section 3.4, wan_video.py. `on_step` is called after each step. Where `computed` of a step
    is False, a branch adds the residual of its last computed step instead of running the blocks (residual_cache.py);
    None computes all steps. The processes of `branch_group` share the branches of a step, two or three of them, and
    each gets their sum.
    """
    has_audio = audio is not None and bool(audio.any())
    caches = _BranchCaches(text, negative_text, condition, audio, use_residuals=computed is not None)
    latents = _hold_prefix(noise.float(), prefix)
    for step, (sigma, next_sigma) in enumerate(pairwise(sigma_schedule(steps, shift).tolist())):
        timestep = torch.full((len(latents),), sigma * TIMESTEPS, device=latents.device)
        branches = guidance.branches(has_audio, step / steps)
        if branch_group is not None:
            branches = branches_for_rank(branches, branch_group.rank, branch_group.size)
        reuse = computed is not None and not computed[step]
        velocity = torch.zeros_like(latents)
        for batch in [branches] if guidance.batched and branches else [[branch] for branch in branches]:
            times = len(batch)
            inputs = caches.inputs(batch, reuse)
            out = model(latents.repeat(times, 1, 1, 1, 1), timestep.repeat(times), *inputs).float()
            for branch, part in zip(batch, out.chunk(times), strict=True):
                velocity += branch.weight * part
        if branch_group is not None:
            velocity = branch_group.total(velocity)
        latents = _hold_prefix(euler_step(latents, velocity, sigma, next_sigma), prefix)
        on_step()
    return latents


class _BranchCaches:
    """Inputs of the network that are the same at every step, with what the network caches in them.

    One entry per batch of branches, made when the batch first runs. Text and audio have keys of their own: the same
    text is used with and without audio, and its keys and values in every block are computed once for both.
    """

    def __init__(
        self,
        text: Tensor,
        negative_text: Tensor,
        condition: Tensor | None,
        audio: Tensor | None,
        use_residuals: bool,
    ) -> None:
        self._positive, self._negative = text, negative_text
        self._condition, self._states = condition, audio
        self._use_residuals = use_residuals
        self._text: dict[tuple[bool, ...], CachedText] = {}
        self._audio: dict[tuple[bool, ...], CachedAudio] = {}
        self._residuals: dict[tuple[tuple[bool, ...], tuple[bool, ...]], ResidualCache] = {}

    def inputs(self, batch: Sequence[Branch], reuse: bool) -> tuple[object, ...]:
        """Text, condition, audio and residual cache of a batch of branches, as AvatarTransformer takes them. `reuse`:
        the residual stands in for the blocks in this step."""
        texts, audios = tuple(branch.text for branch in batch), tuple(branch.audio for branch in batch)
        condition = None if self._condition is None else self._condition.repeat(len(batch), 1, 1, 1, 1)
        residual = self._residuals.setdefault((texts, audios), ResidualCache()) if self._use_residuals else None
        if residual is not None:
            residual.reuse = reuse
        return self._text_of(texts), condition, self._audio_of(audios), residual

    def _text_of(self, positive: tuple[bool, ...]) -> CachedText:
        if positive not in self._text:
            self._text[positive] = CachedText(torch.cat([self._positive if p else self._negative for p in positive]))
        return self._text[positive]

    def _audio_of(self, conditioned: tuple[bool, ...]) -> CachedAudio | None:
        if self._states is None:
            return None
        if conditioned not in self._audio:
            silence = torch.zeros_like(self._states)
            self._audio[conditioned] = CachedAudio(torch.cat([self._states if a else silence for a in conditioned]))
        return self._audio[conditioned]


def _hold_prefix(latents: Tensor, prefix: Tensor | None) -> Tensor:
    if prefix is None:
        return latents
    return torch.cat([prefix.to(latents.dtype), latents[:, :, prefix.shape[2] :]], dim=2)
