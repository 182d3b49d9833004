"""Distillation from an exact teacher: conversions, expected gradient, and the collapse of SDS that VSD is free of."""

import pytest
import torch
from torch import Tensor

from audioavatar.config import DistilConfig
from audioavatar.distil.score import (
    Distillation,
    clean_estimate,
    distillation_gradient,
    distillation_loss,
    noise_estimate,
)
from audioavatar.distil.teacher import GaussianTeacher

MEAN, DEVIATION = 2.0, 0.5
TEACHER = GaussianTeacher(MEAN, DEVIATION)


@pytest.mark.parametrize("parameterisation", ["noise", "score", "flow"])
def test_every_parameterisation_says_the_same(parameterisation: str) -> None:
    x, eps = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = 0.3
    alpha = 1 - sigma if parameterisation == "flow" else (1 - sigma**2) ** 0.5
    z = alpha * x + sigma * eps
    output = {"noise": eps, "score": -eps / sigma, "flow": eps - x}[parameterisation]
    assert (noise_estimate(output, z, sigma, parameterisation) - eps).abs().max() < 1e-12  # type: ignore[arg-type]
    assert (clean_estimate(output, z, alpha, sigma, parameterisation) - x).abs().max() < 1e-12  # type: ignore[arg-type]


def test_for_flows_the_difference_is_one_less_sigma_times_that_of_velocities() -> None:
    x, eps, velocity = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = 0.7 * x + 0.3 * eps
    difference = noise_estimate(velocity, z, 0.3, "flow") - eps
    assert (difference - 0.7 * (velocity - (eps - x))).abs().max() < 1e-12


def test_the_expected_gradient_is_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x, alpha, sigma = 0.5, 0.8, 0.6
    eps = torch.randn(400_000, generator=generator, dtype=torch.float64)
    z = alpha * x + sigma * eps
    mean = float(distillation_gradient(TEACHER.predict(z, sigma, None), eps, 1.0).mean())
    closed = sigma * alpha * (x - MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    assert mean == pytest.approx(closed, abs=0.01)


def distilled(method: str, sign: float = 1.0, steps: int = 600) -> Tensor:
    """2,000 numbers after distillation from the exact denoiser of N(2, 0.5^2)."""
    config = DistilConfig(method, lowest=0.05, highest=0.95, last_highest=0.95, critic_rate=0.02, critic_steps=2)  # type: ignore[arg-type]
    distillation = Distillation(TEACHER, config)
    particles = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
    particles.requires_grad_()
    for step in range(steps):
        (gradient,) = torch.autograd.grad(distillation.loss(particles, None), particles)
        with torch.no_grad():
            particles -= sign * 0.2 * (1 - step / steps) * len(particles) * gradient
    return particles.detach()


def test_the_gradient_reaches_what_made_z_and_not_the_teacher() -> None:
    x, weight = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    z = 0.8 * x
    loss = distillation_loss(z, distillation_gradient(weight * z, torch.zeros(4), 0.5))
    loss.backward()
    assert torch.allclose(x.grad, torch.full((4,), 0.8 * 0.5 * 0.8)) and weight.grad is None  # type: ignore[arg-type]
