"""OmniAvatarTeacher: the first system as teacher of the second, its videos and its score; nothing else of the second
system's training knows the first.

Legend: B clips, T latent frames, F = 4(T - 1) + 1 frames of which the first is the image, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioavatar.config import TeacherConfig
from audioavatar.distil.lora import LoraCritic
from audioavatar.distil.teacher import Parameterisation
from common.constants import FRAMES_PER_LATENT
from common.errors import InputError
from omniavatar.model.adapter import inject_lora
from omniavatar.model.flow import TIMESTEPS
from omniavatar.model.transformer import build_condition
from omniavatar.pipeline import OmniAvatarPipeline
from omniavatar.video.chunks import ClipRequest
from omniavatar.video.sampler import Guidance
from omniavatar.video.scene import frames_of, prepare
from training.audioavatar.config import AvatarTrainConfig

_LEAD = 13  # frames before a part: what chunks of long videos share


@dataclass(frozen=True)
class OmniAvatarCondition:
    """`text` and `negative_text` (1, n, D), `reference` (1, 16, 1, h, w) latent of the image, `audio` (1, F, C) with a
    zero frame for the image, and the `prefix` latents (1, 16, k, h, w) that a clip begins with."""

    text: Tensor
    negative_text: Tensor
    reference: Tensor
    audio: Tensor
    prefix: Tensor


class OmniAvatarTeacher:
    """Our own first system, through its public pipeline. Clips are the image and 4n frames after it."""

    parameterisation: Parameterisation = "flow"

    def __init__(self, pipeline: OmniAvatarPipeline) -> None:
        self.pipeline, self.models = pipeline, pipeline.models

    @classmethod
    def from_pretrained(
        cls, weights: Mapping[str, Path], config: TeacherConfig = TeacherConfig()
    ) -> "OmniAvatarTeacher":
        """Load the roles of generation; raises what `OmniAvatarPipeline.from_pretrained` raises."""
        return cls(OmniAvatarPipeline.from_pretrained(weights, **asdict(config)))

    @classmethod
    def from_recipe(cls, weights: Mapping[str, Path], recipe: AvatarTrainConfig, name: str) -> "OmniAvatarTeacher":
        """As `from_pretrained`, with the settings that a recipe gives the teacher of a name."""
        return cls.from_pretrained(weights, recipe.teachers[name])

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """As of VideoTeacher; the image itself is not among the frames."""
        return self.pipeline(image, audio, prompt, seed=seed).frames

    def settings(self) -> dict[str, object]:
        """As of VideoTeacher."""
        return {"teacher": "omniavatar", **asdict(self.pipeline.config)}

    def schedule(self, tau: float) -> tuple[float, float]:
        """A straight line from clean to noise."""
        return 1 - tau, tau

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, 16, T, h, w). Raises InputError unless F = 4n + 1."""
        return self.models.vae.encode(video).float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, T, h, w) -> (B, 3, F, H, W) in [-1, 1]."""
        return self.models.vae.decode(latents)

    @torch.no_grad()
    def condition(self, image: np.ndarray, audio: np.ndarray, prompt: str) -> OmniAvatarCondition:
        """Everything encoded once, of the audio's frames rounded up to 4n. Raises what `prepare` raises."""
        frames = -(-frames_of(audio) // FRAMES_PER_LATENT) * FRAMES_PER_LATENT
        scene = prepare(self.models, [ClipRequest(image, audio, prompt)], self.pipeline.config, frames)
        if scene.audio is None:
            raise InputError("The teacher is a plain text-to-video model; give one with an adapter, which hears.")
        reference = scene.reference.float()
        return OmniAvatarCondition(scene.text, scene.negative_text, reference, scene.audio, reference)

    @torch.no_grad()
    def part(self, condition: Any, start: int, stop: int, video: Tensor) -> tuple[int, OmniAvatarCondition]:
        """As of VideoTeacher; up to 13 frames before a part are given. Raises InputError unless both are 4n."""
        if start % FRAMES_PER_LATENT or stop % FRAMES_PER_LATENT:
            raise InputError(f"A part from frame {start} to {stop}; expected multiples of {FRAMES_PER_LATENT}.")
        lead = min(_LEAD, start + 1)
        first = start + 1 - lead
        prefix = self.encode(video[:, :, first : start + 1])
        return lead, replace(condition, audio=condition.audio[:, first : stop + 1], prefix=prefix)

    @torch.no_grad()
    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """Guided velocity (B, 16, T, h, w)."""
        config = self.pipeline.config
        branches = Guidance(config.text_guidance, config.audio_guidance).branches(has_audio=True)
        parts = [
            branch.weight * self._velocity(z, tau, condition, text=branch.text, audio=branch.audio)
            for branch in branches
        ]
        return torch.stack(parts).sum(0)

    def lora(self, rank: int) -> LoraCritic:
        """As of VideoTeacher, on the ten linears of every block. Raises ValueError for a second one."""
        # An adapter that was merged leaves its description behind, of which peft warns.
        self.models.transformer.dit.__dict__.pop("peft_config", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inject_lora(self.models.transformer, rank, rank)
        return LoraCritic(self.models.transformer, self._velocity)

    def _velocity(self, z: Tensor, tau: float, condition: Any, text: bool = True, audio: bool = True) -> Tensor:
        count, k = len(z), condition.prefix.shape[2]
        prefix = condition.prefix.expand(count, -1, -1, -1, -1)
        states = condition.audio if audio else torch.zeros_like(condition.audio)
        velocity = self.models.transformer(
            torch.cat([prefix.to(z), z[:, :, k:]], dim=2),
            torch.full((count,), tau * TIMESTEPS, device=z.device),
            (condition.text if text else condition.negative_text).expand(count, -1, -1),
            build_condition(condition.reference, z.shape[2], k).expand(count, -1, -1, -1, -1),
            states.expand(count, -1, -1),
        ).float()
        # Of what is given the noise is known.
        return torch.cat([(z[:, :, :k] - prefix) / tau, velocity[:, :, k:]], dim=2)
