"""Interface of a video diffusion teacher and of the critic that follows the renders; the closed-form Gaussian teacher.

Legend: z = alpha x + sigma eps at diffusion time tau in 0..1 (0: clean); B clips, F frames.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from common.constants import SAMPLES_PER_FRAME

Parameterisation = Literal["noise", "score", "flow"]
"""What a network predicts: eps; the score of z; or the velocity eps - x of a rectified flow (alpha = 1 - sigma)."""


class Critic(Protocol):
    """A second denoiser, of the teacher's parameterisation, that is trained on the current renders."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained; none of it is the teacher's."""
        ...

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """As of the teacher, without guidance, with a gradient to its parameters."""
        ...


class ClipTeacher(Protocol):
    """Anything that films a picture saying something; its clips are all that can be learned from it."""

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """A video: frames (ceil(N / 640), H, W, 3) uint8 RGB at 25 per second."""
        ...

    def settings(self) -> Mapping[str, object]:
        """What its videos depend on besides the arguments: model and sampling."""
        ...


class VideoTeacher(ClipTeacher, Protocol):
    """A video diffusion model conditioned on an image, a voice and a prompt; latents have whatever shape it likes."""

    parameterisation: Parameterisation

    def schedule(self, tau: float) -> tuple[float, float]:
        """alpha and sigma at tau."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Frames (B, 3, F, H, W) in [-1, 1] -> clean latents, with a gradient."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, as far as there is one."""
        ...

    def condition(self, image: np.ndarray, audio: np.ndarray, prompt: str) -> Any:
        """RGB uint8 image, mono 16 kHz audio and prompt as `predict` takes them."""
        ...

    def part(self, condition: Any, start: int, stop: int, video: Tensor) -> tuple[int, Any]:
        """For frames `start` to `stop` of a clip alone: with how many of the frames before them their video has to
        begin, and their condition. `video` (1, 3, 1 + F, H, W) in [-1, 1] is the clip, the image as its first frame."""
        ...

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """The network's output for noisy latents, with the teacher's own guidance; no gradient goes through it."""
        ...

    def lora(self, rank: int) -> Critic:
        """A critic that begins as the teacher without guidance."""
        ...


@dataclass(frozen=True)
class GaussianTeacher:
    """The exact denoiser of data of N(mean, deviation^2): what distillation does with it has a closed form."""

    mean: float = 0.0
    deviation: float = 1.0
    parameterisation: Parameterisation = "noise"

    def schedule(self, tau: float) -> tuple[float, float]:
        """Variance preserving, or a straight line for "flow"."""
        return (1 - tau if self.parameterisation == "flow" else (1 - tau**2) ** 0.5), tau

    def encode(self, video: Tensor) -> Tensor:
        """Latents are the video."""
        return video

    def decode(self, latents: Tensor) -> Tensor:
        """The same."""
        return latents

    def condition(self, image: np.ndarray, audio: np.ndarray, prompt: str) -> None:
        """It depends on nothing."""

    def part(self, condition: Any, start: int, stop: int, video: Tensor) -> tuple[int, None]:
        """As of VideoTeacher."""
        return 0, None

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """As of VideoTeacher."""
        return _exact(z, *self.schedule(tau), self.mean, self.deviation, self.parameterisation).detach()

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """Draws from the Gaussian, in [-1, 1]."""
        shape = (-(-len(audio) // SAMPLES_PER_FRAME), *image.shape)
        values = self.mean + self.deviation * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()

    def lora(self, rank: int) -> "GaussianCritic":
        """A Gaussian that begins as the teacher's; it has two numbers whatever the rank."""
        return GaussianCritic(self)

    def settings(self) -> dict[str, object]:
        """As of VideoTeacher."""
        return {"teacher": "gaussian", **vars(self)}


class GaussianCritic(nn.Module):
    """The denoiser of a Gaussian whose mean and log deviation are trained."""

    def __init__(self, teacher: GaussianTeacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.mean = nn.Parameter(torch.tensor(teacher.mean, dtype=torch.float64))
        self.log_deviation = nn.Parameter(torch.tensor(teacher.deviation, dtype=torch.float64).log())

    def predict(self, z: Tensor, tau: float, condition: Any) -> Tensor:
        """As of Critic."""
        alpha, sigma = self.teacher.schedule(tau)
        return _exact(z, alpha, sigma, self.mean, self.log_deviation.exp(), self.teacher.parameterisation)


def _exact(
    z: Tensor,
    alpha: float,
    sigma: float,
    mean: float | Tensor,
    deviation: float | Tensor,
    parameterisation: Parameterisation,
) -> Tensor:
    """The best output for z of data of N(mean, deviation^2)."""
    variance = alpha**2 * deviation**2 + sigma**2
    score = (alpha * mean - z) / variance
    if parameterisation == "score":
        return score
    if parameterisation == "noise":
        return -sigma * score
    clean = mean + alpha * deviation**2 * (z - alpha * mean) / variance
    return (z - clean) / sigma
