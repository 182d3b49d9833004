import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from omniavatar.model.flow import (
    add_noise,
    draw_sigma,
    euler_step,
    loss_weight,
    shift_sigma,
    sigma_schedule,
    velocity_target,
)


def test_schedule_is_the_formula_and_its_published_values() -> None:
    sigmas = sigma_schedule(25)
    assert len(sigmas) == 26 and sigmas[-1] == 0
    for index, sigma in enumerate(sigmas.tolist()):
        s = 1 - index / 25
        assert abs(sigma - 5 * s / (1 + 4 * s)) < 1e-6
    assert [round(x, 4) for x in sigmas[:3].tolist()] == [1.0, 0.9917, 0.9829]
    assert [round(x, 4) for x in sigma_schedule(50)[-4:-1].tolist()] == [0.2419, 0.1724, 0.0926]


def test_schedule_equals_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 26)[:-1].numpy())
    assert (scheduler.sigmas - sigma_schedule(25)).abs().max() < 1e-6


def test_training_draws_have_the_published_distribution() -> None:
    ids = torch.arange(1000, dtype=torch.float64) / 1000
    t = 1000 * draw_sigma(ids, shift=5.0, kind="grid")
    assert abs(t.median() - 833) < 1 and abs(t.mean() - 748) < 1
    assert round((t >= 900).double().mean().item(), 3) == 0.358
    assert round((t < 500).double().mean().item(), 3) == 0.166
    assert len(t.unique()) == 1000 and t.max() == 1000


def test_grid_takes_one_of_a_thousand_steps_and_uniform_does_not() -> None:
    u = torch.tensor([0.0, 0.00049, 0.99999], dtype=torch.float64)
    assert draw_sigma(u, 1.0, "grid").tolist() == pytest.approx([1.0, 1.0, 0.001])
    assert draw_sigma(u, 1.0, "uniform").tolist() == pytest.approx([1.0, 0.99951, 0.00001])


def test_logit_normal_is_the_sigmoid_of_a_normal() -> None:
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    logits = torch.logit(draw_sigma(u, 1.0, "logit_normal"))
    assert abs(logits.mean()) < 1e-6 and abs(logits.std() - 1) < 0.01
    assert torch.allclose(draw_sigma(u, 3.0, "logit_normal"), shift_sigma(torch.sigmoid(logits), 3.0))
    with pytest.raises(ValueError, match="'bell'"):
        draw_sigma(u, 1.0, "bell")


def test_loss_weight_has_its_published_values_and_mean_one() -> None:
    weights = loss_weight(torch.tensor([500.0, 833.0, 950.0, 1000.0, 5.0]) / 1000)
    assert [round(x, 2) for x in weights.tolist()] == [2.08, 1.03, 0.32, 0.0, 0.03]
    for shift in (1.5, 5.0):
        every = draw_sigma(torch.arange(1000, dtype=torch.float64) / 1000, shift, "grid")
        assert loss_weight(every, shift).mean().item() == pytest.approx(1.0)


def test_a_straight_line_is_solved_exactly_by_any_number_of_steps() -> None:
    x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for steps in (1, 7):
        x = noise
        sigmas = sigma_schedule(steps)
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = euler_step(x, velocity_target(x0, noise), now, then)
        assert (x - x0).abs().max() < 1e-6


def test_noise_is_mixed_per_sample() -> None:
    x0, noise = torch.zeros(2, 3, 1), torch.ones(2, 3, 1)
    assert add_noise(x0, noise, torch.tensor([0.25, 1.0]))[:, 0, 0].tolist() == [0.25, 1.0]
    assert math.isclose(shift_sigma(torch.tensor(0.5), 1.0).item(), 0.5)
