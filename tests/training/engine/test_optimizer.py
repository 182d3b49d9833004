import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.engine.optimizer import build_optimizer, learning_rate


def test_the_rate_warms_up_stays_and_falls_to_zero_over_the_last_part() -> None:
    config = OptimizerConfig(lr=2e-3, warmup=100, decay=0.4)
    points = [(0, 0.0), (49, 0.05), (99, 0.1), (500, 0.5), (600, 0.6), (800, 0.8), (1000, 1.0)]
    expected = [2e-5, 1e-3, 2e-3, 2e-3, 2e-3, 1e-3, 0.0]
    assert [learning_rate(config, step, progress) for step, progress in points] == pytest.approx(expected)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    config = OptimizerConfig(lr=5e-5, warmup=0)
    assert {learning_rate(config, step, step / 10) for step in range(11)} == {5e-5}


def test_only_matrices_decay_and_only_trained_weights_are_there() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1, betas=(0.9, 0.98)))
    decay, rest = optimizer.param_groups
    assert [p.shape for p in decay["params"]] == [torch.Size([4, 3])]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(rest["params"]) == 3
    assert decay["betas"] == (0.9, 0.98)


def test_a_decay_that_is_no_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match="decay is 40"):
        OptimizerConfig(decay=40)
