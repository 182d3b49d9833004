"""Rectified flow with a shifted schedule: x_sigma = (1 - sigma) x0 + sigma noise, velocity = noise - x0.

Source: the released sampler (schedulers/flow_match.py) and the training loss of DiffSynth-Studio it descends from.
Times are sigma in [0, 1]; the network's timestep is 1000 sigma.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from common.errors import InputError

TIMESTEPS = 1000
Draw = Literal["uniform", "grid", "logit_normal"]


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move uniform sigmas towards the noise: shift s / (1 + (shift - 1) s)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_schedule(steps: int, shift: float = 5.0) -> Tensor:
    """(steps + 1,) float32 sigmas from 1 down to the closing 0. Raises ValueError for steps < 1."""
    if steps < 1:
        raise InputError(f"steps is {steps}; expected at least 1.")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def draw_sigma(uniform: Tensor, shift: float = 5.0, kind: Draw = "grid") -> Tensor:
    """Turn uniform numbers in [0, 1) into training sigmas in (0, 1].

    "grid" takes one of 1000 even steps before the shift (the published trainer), "uniform" is its continuous
    version, "logit_normal" is sigmoid of a standard normal before the shift.
    """
    if kind == "grid":
        sigma = 1 - torch.floor(uniform * TIMESTEPS) / TIMESTEPS
    elif kind == "uniform":
        sigma = 1 - uniform
    elif kind == "logit_normal":
        sigma = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))
    else:
        raise InputError(f"Unknown timestep draw {kind!r}; expected uniform, grid or logit_normal.")
    return shift_sigma(sigma, shift)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma noise, with sigma (B,) over x0 (B, ...)."""
    sigma = _over(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the network is trained to predict: noise - x0."""
    return noise - x0


def loss_weight(sigma: Tensor, shift: float = 5.0) -> Tensor:
    """Bell over the timestep, 0 at pure noise, of mean 1 over the 1000 shifted training steps.

    For shift 5: 2.08 at t = 500, 1.03 at 833, 0.32 at 950, 0 at 1000.
    """
    lowest, mean = _bell_range(shift)
    return (_bell(sigma) - lowest) / (mean - lowest)


def _bell(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)


@lru_cache(maxsize=8)
def _bell_range(shift: float) -> tuple[float, float]:
    every = _bell(shift_sigma(1 - torch.arange(TIMESTEPS, dtype=torch.float64) / TIMESTEPS, shift))
    return every.min().item(), every.mean().item()


def euler_step(x: Tensor, velocity: Tensor, sigma: Tensor | float, next_sigma: Tensor | float) -> Tensor:
    """One step of the probability-flow ODE: x + velocity (next_sigma - sigma)."""
    return x + velocity * (next_sigma - sigma)


def _over(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
