"""Refinement: sequence time and no noise level, face and hands alone, frames nearby alone; it mends what can be."""

import inspect

import pytest
import torch
from torch import Tensor

from audioavatar.config import RefinementConfig
from audioavatar.driven.refinement import Refiner, fit_refiner, refine

SMALL = RefinementConfig(width=32, layers=2, heads=2, reach=4, window=24, steps=60, rate=5e-3, noise=0.0)


@pytest.fixture
def net() -> Refiner:
    """Any but an untrained one, whose residual is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Refiner(5, 3, 6, SMALL)
        torch.nn.init.normal_(net.exit.weight)
    return net.eval()


def test_it_knows_sequence_time_and_no_noise_level(net: Refiner) -> None:
    assert list(inspect.signature(net.forward).parameters) == ["motion", "audio", "time"]
    motion, audio, time = torch.randn(1, 20, 8), torch.randn(1, 20, 6), torch.arange(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    straight, shuffled = net(motion, audio, time), net(motion, audio, time[order])
    assert not torch.allclose(straight, shuffled)
    assert torch.equal(straight[..., 5:], motion[..., 5:])  # the body is as it came


def test_a_frame_sees_only_its_neighbourhood(net: Refiner) -> None:
    motion, audio, time = torch.randn(1, 24, 8), torch.randn(1, 24, 6), torch.arange(24)
    other = motion.clone()
    other[:, 0] += torch.randn(8)
    changed = (net(motion, audio, time) - net(other, audio, time)).abs().sum(-1)[0] > 1e-6
    assert changed.nonzero().max() <= 2 * SMALL.reach  # two layers


def world(seed: int, clips: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Motion made too small and a frame late (C, 24, 6), audio, and the motion that was meant."""
    fixed = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    raw = torch.randn(clips, 28, 6, generator=torch.Generator().manual_seed(seed))
    audio = raw.unfold(1, 5, 1).mean(-1) * 2
    wanted = audio @ fixed
    return 0.7 * torch.roll(wanted, 1, dims=1), audio, wanted


def test_it_mends_a_systematic_error_and_not_with_the_wrong_audio() -> None:
    made, audio, wanted = world(0)
    net = fit_refiner(list(made), list(audio), list(wanted), 4, SMALL)
    made, audio, wanted = world(1)

    def error(audio: Tensor) -> float:
        refined = torch.stack([refine(net, m, a) for m, a in zip(made, audio, strict=True)])
        return float((refined - wanted)[..., :4].abs().mean() / (made - wanted)[..., :4].abs().mean())

    assert error(audio) < 0.9 < error(audio.flip(0))


def test_windows_and_absolute_time(net: Refiner) -> None:
    motion, audio = torch.randn(50, 8), torch.randn(50, 6)
    relative, absolute = refine(net, motion, audio), refine(net, motion, audio, relative=False)
    assert torch.equal(relative[:24], absolute[:24]) and not torch.equal(relative[24:], absolute[24:])
