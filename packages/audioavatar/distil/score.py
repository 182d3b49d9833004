"""Score distillation from any diffusion teacher: what its output says about noise, and the gradients SDS and VSD.

The note's formula subtracts the noise that was added, which is SDS; VSD (Wang et al. 2023, ProlificDreamer) subtracts
the estimate of a second network that follows the renders. Legend: z = alpha x + sigma eps.
"""

from typing import Any

import torch
from torch import Tensor

from audioavatar.config import DistilConfig
from audioavatar.distil.teacher import Parameterisation, VideoTeacher


def noise_estimate(output: Tensor, z: Tensor, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """eps as a teacher's `output` for z implies it."""
    if parameterisation == "noise":
        return output
    if parameterisation == "score":
        return -sigma * output
    return z + (1 - sigma) * output


def clean_estimate(output: Tensor, z: Tensor, alpha: float, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """x as a teacher's `output` for z implies it."""
    if parameterisation == "flow":
        return z - sigma * output
    return (z - sigma * noise_estimate(output, z, sigma, parameterisation)) / alpha


def distillation_gradient(teacher: Tensor, reference: Tensor, weight: float) -> Tensor:
    """w (eps_teacher - eps_reference), through neither of which a gradient goes.

    SDS where the reference is the noise that was added, VSD where it is the estimate of a network trained on the
    current renders.
    """
    return weight * (teacher - reference).detach()


def distillation_loss(z: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose derivative in z is `gradient`: 1/2 |z - stopgrad(z - g)|^2."""
    return 0.5 * (z - (z - gradient).detach()).square().sum()


class Distillation:
    """SDS or VSD of one training run: the teacher, its critic, and the random numbers of both.

    One tau for a whole clip, uniform from `lowest` to `highest`, whose upper end moves to `last_highest` over the run;
    w = sigma^2, in which the alpha of d z / d x is contained. The range of the defaults is what was measured (README).
    """

    def __init__(self, teacher: VideoTeacher, config: DistilConfig = DistilConfig(), seed: int = 0) -> None:
        self.teacher, self.config = teacher, config
        self.random = torch.Generator().manual_seed(seed)
        self.critic = teacher.lora(config.rank) if config.method == "vsd" else None
        if self.critic is not None:
            self.optimiser = torch.optim.Adam(self.critic.parameters(), lr=config.critic_rate, betas=(0.9, 0.95))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the critic, its optimiser and the random numbers."""
        state: dict[str, Any] = {"random": self.random.get_state()}
        if self.critic is not None:
            state |= {"critic": list(self.critic.parameters()), "optimiser": self.optimiser.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self.random.set_state(state["random"])
        if self.critic is not None:
            self.optimiser.load_state_dict(state["optimiser"])
            with torch.no_grad():
                for parameter, value in zip(self.critic.parameters(), state["critic"], strict=True):
                    parameter.copy_(value)

    def loss(self, video: Tensor, condition: Any, progress: float = 0.0) -> Tensor:
        """The distillation loss of a rendered clip (B, 3, F, H, W) in [-1, 1], per latent number; `progress` 0..1.

        The critic takes its steps on the same clip first. No gradient reaches the teacher or the critic.
        """
        latents = self.teacher.encode(video)
        clean = latents.detach()
        for _ in range(self.config.critic_steps):
            self.follow(clean, condition)
        tau = self._draw(progress)
        alpha, sigma = self.teacher.schedule(tau)
        eps = self._noise(clean)
        noisy = alpha * clean + sigma * eps
        with torch.no_grad():
            taught = self._eps(self.teacher.predict(noisy, tau, condition), noisy, sigma)
            if self.critic is not None:
                reference = self._eps(self.critic.predict(noisy, tau, condition), noisy, sigma)
            else:
                reference = eps
        gradient = distillation_gradient(taught, reference, sigma**2)
        return distillation_loss(latents, gradient) / latents.numel()

    def follow(self, clean: Tensor, condition: Any) -> None:
        """A step of the critic, |eps_critic - eps|^2, on latents of the current renders; SDS has none."""
        if self.critic is None:
            return
        tau = self._draw(0.0)
        alpha, sigma = self.teacher.schedule(tau)
        eps = self._noise(clean)
        noisy = alpha * clean + sigma * eps
        estimate = self._eps(self.critic.predict(noisy, tau, condition), noisy, sigma)
        self.optimiser.zero_grad()
        (estimate - eps).square().mean().backward()
        self.optimiser.step()

    def _draw(self, progress: float) -> float:
        config = self.config
        highest = config.highest + progress * (config.last_highest - config.highest)
        return config.lowest + (highest - config.lowest) * float(torch.rand((), generator=self.random))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.random, dtype=like.dtype).to(like.device)

    def _eps(self, output: Tensor, z: Tensor, sigma: float) -> Tensor:
        return noise_estimate(output, z, sigma, self.teacher.parameterisation)
