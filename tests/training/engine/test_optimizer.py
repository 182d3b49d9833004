import pytest
import torch
from torch import Tensor, nn

from training.config import Fused, OptimizerConfig
from training.engine.optimizer import build_optimizer, is_fused, learning_rate, set_kernel


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


def test_one_kernel_takes_the_same_steps() -> None:
    def trained(fused: Fused, switch: Fused) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(300, 70)
        optimizer = build_optimizer(layer, OptimizerConfig(lr=1e-2), fused)
        for step in range(4):
            if step == 2:  # as a checkpoint that another kernel saved
                saved, optimizer = optimizer.state_dict(), build_optimizer(layer, OptimizerConfig(lr=1e-2), switch)
                optimizer.load_state_dict(saved)
                set_kernel(optimizer, switch)
                assert {group["fused"] for group in optimizer.param_groups} == {is_fused(switch) or None}
            optimizer.zero_grad()
            layer(torch.ones(5, 300)).pow(2).mean().backward()
            optimizer.step()
        return layer.weight.detach()

    expected = trained("off", "off")
    assert torch.equal(trained("auto", "auto"), expected)  # on a CPU
    for kernels in (("on", "on"), ("on", "off"), ("off", "on")):
        torch.testing.assert_close(trained(*kernels), expected, rtol=1e-5, atol=1e-6)
