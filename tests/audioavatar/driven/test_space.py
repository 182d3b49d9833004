"""The learnt space of motion: motion that it has not seen comes back; training lowers both of its losses."""

import math
from dataclasses import replace

import pytest
import torch

from audioavatar.avatar import Avatar
from audioavatar.config import EmbeddingConfig
from audioavatar.driven.space import LearntSpace, fit_space
from audioavatar.fit.fields import mouth_fields
from audioavatar.motion import Motion, lip_gap, still

QUICK = EmbeddingConfig(embedding=8, width=32, audio_width=16, steps=60, clips=3, particles=64, rate=1e-2, noise=0.0)


def spoken(avatar: Avatar, seed: int, frames: int = 16) -> tuple[Avatar, Motion, torch.Tensor]:
    """Motion of a mouth that opens as the first of four features says."""
    raw = torch.rand(frames + 2, 4, generator=torch.Generator().manual_seed(seed))
    features = raw.unfold(0, 3, 1).mean(-1) * 4 - 2
    opening = torch.tensor([1.0, 1.0, 0.0, 0.0]) * features[:, :1]
    shift = torch.einsum("tf,fnd->tnd", opening, mouth_fields(avatar))
    return avatar, replace(still(avatar, frames), shift=shift), features


@pytest.fixture(scope="module")
def trained(avatar: Avatar) -> tuple[LearntSpace, list[dict[str, float]]]:
    return fit_space([spoken(avatar, seed) for seed in range(6)], QUICK)


@pytest.fixture(scope="module")
def space(trained: tuple[LearntSpace, list[dict[str, float]]]) -> LearntSpace:
    return trained[0]


def test_held_out_motion_comes_back_and_training_lowers_both_losses(
    avatar: Avatar, space: LearntSpace, trained: tuple[LearntSpace, list[dict[str, float]]]
) -> None:
    _, motion, _ = spoken(avatar, 50)
    embedded = space.encode(avatar, motion)
    again = space.bind(avatar).motion(embedded)
    gaps = torch.stack([lip_gap(avatar, motion), lip_gap(avatar, again)])
    assert embedded.shape == (16, len(space)) and float(torch.corrcoef(gaps)[0, 1]) > 0.8
    first, last = trained[1][0], trained[1][-1]
    # Of embeddings at random the contrast is log B for frames and for windows.
    assert first["similar"] == pytest.approx(math.log(48) + math.log(9), abs=0.3)
    assert last["similar"] < first["similar"] - 1 and last["rebuilt"] < 0.3 * first["rebuilt"]


def test_untrained_it_keeps_everything_still_and_training_repeats(avatar: Avatar, space: LearntSpace) -> None:
    still = LearntSpace(4, QUICK).bind(avatar).motion(torch.randn(2, len(space)))
    assert not still.shift.any() and not still.growth.any()
    short = EmbeddingConfig(embedding=8, width=8, audio_width=8, steps=2, clips=2, particles=16)
    first, second = (fit_space([spoken(avatar, seed) for seed in range(2)], short)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
