"""Distillation from an exact teacher: conversions, expected gradient, and the collapse of SDS that VSD is free of."""

import pytest
import torch
from torch import Tensor

from audioavatar.distil import clean_estimate, distillation_gradient, distillation_loss, noise_estimate

MEAN, DEVIATION = 2.0, 0.5


def exact_noise(z: Tensor, alpha: float, sigma: float, mean: float | Tensor, deviation: float | Tensor) -> Tensor:
    """The best estimate of eps for data of N(mean, deviation^2)."""
    return sigma * (z - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)


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
    mean = float(distillation_gradient(exact_noise(z, alpha, sigma, MEAN, DEVIATION), eps, 1.0).mean())
    closed = sigma * alpha * (x - MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    assert mean == pytest.approx(closed, abs=0.01)


def distilled(method: str, sign: float = 1.0, steps: int = 600) -> Tensor:
    """2,000 numbers after distillation from the exact denoiser of N(2, 0.5^2)."""
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(2000, generator=generator, dtype=torch.float64) * 1.5
    for step in range(steps):
        sigma = 0.05 + 0.9 * float(torch.rand((), generator=generator))
        alpha = (1 - sigma**2) ** 0.5
        eps = torch.randn(2000, generator=generator, dtype=torch.float64)
        z = alpha * particles + sigma * eps
        teacher = exact_noise(z, alpha, sigma, MEAN, DEVIATION)
        reference = eps if method == "sds" else exact_noise(z, alpha, sigma, particles.mean(), particles.std())
        rate = 0.1 * (1 - step / steps)
        particles = particles - sign * rate * distillation_gradient(teacher, reference, 1.0)
    return particles


def test_sds_collapses_and_vsd_keeps_the_spread() -> None:
    vsd, sds = distilled("vsd"), distilled("sds")
    assert float(vsd.mean()) == pytest.approx(MEAN, abs=0.05) and float(sds.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(vsd.std()) == pytest.approx(DEVIATION, rel=0.1) and float(sds.std()) < 0.25
    assert abs(float(distilled("vsd", sign=-1.0).mean()) - MEAN) > 2  # a wrong sign runs away


def test_the_gradient_reaches_what_made_z_and_not_the_teacher() -> None:
    x, weight = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    z = 0.8 * x
    loss = distillation_loss(z, distillation_gradient(weight * z, torch.zeros(4), 0.5))
    loss.backward()
    assert torch.allclose(x.grad, torch.full((4,), 0.8 * 0.5 * 0.8)) and weight.grad is None  # type: ignore[arg-type]
