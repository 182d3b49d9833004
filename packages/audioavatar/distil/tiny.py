"""TinyVideoTeacher: latent video diffusion in miniature, trained in seconds on clips of the analytic person.

Its autoencoder is the principal components of frames, its denoiser a transformer over them with audio; it draws one
person, so the image and the prompt are not looked at. Legend: B clips, F frames, K latent numbers per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioavatar.distil.lora import LoraCritic, add_lora
from audioavatar.distil.procedural_clips import ProceduralClip, ProceduralPerson, to_teacher
from audioavatar.distil.teacher import Parameterisation
from audioavatar.driven.features import log_mel
from audioavatar.driven.generator import MotionTransformer

_TARGETS = ("entry", "feed.0", "feed.2", "exit.1")


@dataclass(frozen=True)
class TinyTeacherConfig:
    """Latent numbers per frame, size and training of the denoiser, and steps of sampling."""

    latents: int = 16
    width: int = 48
    layers: int = 2
    heads: int = 4
    steps: int = 400
    rate: float = 4e-3
    sampling_steps: int = 12


class TinyVideoTeacher:
    """A rectified flow over frames. Create one with `train`."""

    parameterisation: Parameterisation = "flow"

    def __init__(self, mean: Tensor, axes: Tensor, scale: Tensor, net: MotionTransformer, config: TinyTeacherConfig):
        self.mean, self.axes, self.scale, self.net, self.config = mean, axes, scale, net, config

    @classmethod
    def train(
        cls,
        person: ProceduralPerson,
        clips: Sequence[ProceduralClip],
        config: TinyTeacherConfig = TinyTeacherConfig(),
        seed: int = 0,
    ) -> "TinyVideoTeacher":
        """Train on clips of one length."""
        with torch.no_grad():
            videos = torch.cat([to_teacher(person.video(person.offsets(clip.swing))) for clip in clips])
        rows = videos.permute(0, 2, 3, 4, 1).flatten(2)  # (B, F, H * W * 3)
        mean = rows.flatten(0, 1).mean(0)
        audio = torch.stack([log_mel(clip.wave) for clip in clips])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, values, axes = torch.svd_lowrank(rows.flatten(0, 1) - mean, config.latents + 8)
            axes = axes[:, : config.latents]
            scale = values[: config.latents] / (len(rows) * rows.shape[1] - 1) ** 0.5
            net = MotionTransformer(audio.shape[-1], config.latents, config.width, config.layers, config.heads)
            net.audio_mean.copy_(audio.flatten(0, 1).mean(0))
            net.audio_deviation.copy_(audio.flatten(0, 1).std(0))
            teacher = cls(mean, axes, scale, net, config)
            teacher._fit(teacher.encode(videos), audio)
        net.zero_grad()
        net.eval().requires_grad_(False)
        return teacher

    def _fit(self, clean: Tensor, audio: Tensor) -> None:
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=self.config.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.config.rate, total_steps=self.config.steps)
        for _ in range(self.config.steps):
            tau = torch.rand(len(clean))
            sigma = tau[:, None, None]
            noisy = (1 - sigma) * clean + sigma * torch.randn_like(clean)
            loss = (self.net(noisy, self.net.encode(audio), tau) - clean).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    def schedule(self, tau: float) -> tuple[float, float]:
        """A straight line."""
        return 1 - tau, tau

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, F, K) of unit variance."""
        rows = video.permute(0, 2, 3, 4, 1).flatten(2)
        return (rows - self.mean) @ self.axes / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, F, K) -> (B, 3, F, H, W)."""
        rows = (latents * self.scale) @ self.axes.T + self.mean
        side = round((rows.shape[-1] / 3) ** 0.5)
        return rows.unflatten(-1, (side, side, 3)).permute(0, 4, 1, 2, 3)

    def condition(self, image: np.ndarray, audio: np.ndarray, prompt: str) -> Tensor:
        """The audio's features (F, D)."""
        return log_mel(audio)

    def part(self, condition: Any, start: int, stop: int, video: Tensor) -> tuple[int, Tensor]:
        """As of VideoTeacher; a part needs nothing before it."""
        return 0, condition[start:stop]

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """As of VideoTeacher."""
        with torch.no_grad():
            return self._velocity(z, tau, condition)

    def _velocity(self, z: Tensor, tau: float, condition: Tensor) -> Tensor:
        # The network says what is clean; a flow's velocity follows.
        encoded = self.net.encode(condition[None]).expand(len(z), -1, -1)
        return (z - self.net(z, encoded, torch.full((len(z),), tau))) / tau

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """As of VideoTeacher, by Euler steps."""
        condition = self.condition(image, audio, prompt)
        shape = (1, len(condition), self.config.latents)
        z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        times = torch.linspace(1, 0, self.config.sampling_steps + 1).tolist()
        for tau, following in zip(times[:-1], times[1:], strict=True):
            z = z + (following - tau) * self.predict(z, tau, condition)
        frames = self.decode(z)[0].permute(1, 2, 3, 0).clamp(-1, 1)
        return ((frames + 1) * 127.5).round().to(torch.uint8).numpy()

    def lora(self, rank: int) -> LoraCritic:
        """As of VideoTeacher."""
        add_lora(self.net, rank, _TARGETS)
        return LoraCritic(self.net, self._velocity)

    def settings(self) -> dict[str, object]:
        """As of VideoTeacher."""
        return {"teacher": "tiny", **vars(self.config)}
