"""The motion diffusion transformer: FiLM, schedule, and a linear world it has to learn."""

import pytest
import torch
from torch import Tensor

from audioavatar.config import GeneratorConfig
from audioavatar.driven.generator import (
    Film,
    MotionTransformer,
    fit_generator,
    frame_noise,
    kept_signal,
    sample_motion,
)

SMALL = GeneratorConfig(
    width=32, layers=2, heads=2, window=32, overlap=8, steps=150, rate=6e-3, noise=0.0, guidance=1.0
)


def linear_world(clips: int, frames: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Smooth audio of six numbers, and motion of four that follow from them frame by frame."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 4, generator=torch.Generator().manual_seed(99))
    raw = torch.randn(clips, frames + 8, 6, generator=generator)
    audio = raw.unfold(1, 9, 1).mean(-1) * 3
    return list(audio), list(audio @ mixing)


def test_film_starts_as_a_plain_residual_and_blocks_do_not_see_the_time() -> None:
    film = Film(8)
    hidden, branch = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    assert torch.equal(film(hidden, branch, torch.randn(2, 8)), hidden + branch)
    net = MotionTransformer(6, 4, 32, 2, 4)
    noisy, audio = torch.randn(1, 10, 4), torch.randn(1, 10, 32)
    first, second = (net(noisy, audio, torch.tensor([tau])) for tau in (0.1, 0.9))
    assert torch.equal(first, second)
    torch.nn.init.normal_(net.blocks[0].film_1.linear.weight, std=0.1)
    assert not torch.equal(net(noisy, audio, torch.tensor([0.1])), net(noisy, audio, torch.tensor([0.9])))


def test_the_schedule_goes_from_all_signal_to_none() -> None:
    kept = kept_signal(torch.linspace(0, 1, 50))
    assert float(kept[0]) > 0.999 and float(kept[-1]) < 1e-4 and bool((kept.diff() <= 0).all())


@pytest.fixture(scope="module")
def net() -> MotionTransformer:
    return fit_generator(*linear_world(12, 40, 0), SMALL)


def normalised_error(net: MotionTransformer, audio: Tensor, motion: Tensor) -> float:
    made = sample_motion(net, audio, SMALL)
    return float((made - motion).square().mean() / motion.var())


def test_it_learns_a_linear_world_and_fails_with_the_wrong_audio(net: MotionTransformer) -> None:
    audio, motion = linear_world(4, 32, 7)
    right = [normalised_error(net, a, m) for a, m in zip(audio, motion, strict=True)]
    wrong = [normalised_error(net, a, m) for a, m in zip(audio[1:] + audio[:1], motion, strict=True)]
    assert sum(right) / 4 < 0.05 and sum(wrong) / 4 > 1


def test_long_audio_is_made_in_windows_that_join(net: MotionTransformer) -> None:
    (audio,), (motion,) = linear_world(1, 100, 3)
    made = sample_motion(net, audio, SMALL)
    assert made.shape == motion.shape and float((made - motion).square().mean() / motion.var()) < 0.15
    steps = made.diff(dim=0).norm(dim=1)
    joins = [32 - 1, 56 - 1, 80 - 1]  # the first frames that a window adds
    assert float(steps[joins].max()) < 3 * float(steps.median())


def test_noise_belongs_to_a_frame_and_a_seed(net: MotionTransformer) -> None:
    assert torch.equal(frame_noise(1, 5, 4), frame_noise(1, 5, 4))
    assert not torch.equal(frame_noise(1, 5, 4), frame_noise(2, 5, 4))
    (audio,), _ = linear_world(1, 64, 3)
    # What is made of the first window does not depend on what follows.
    assert torch.equal(sample_motion(net, audio, SMALL)[:32], sample_motion(net, audio[:32], SMALL))
