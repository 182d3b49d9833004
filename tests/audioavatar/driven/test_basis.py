"""The mouth's basis: exact on motions it was made of, carried over to another face, still where it does not reach."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.config import ReliefConfig
from audioavatar.driven.basis import principal_components
from audioavatar.fit.fields import mouth_fields
from audioavatar.motion import Motion, lip_gap, still
from audioavatar.particles import Part
from audioavatar.say import build
from miniature.weights import model_paths
from miniature.world.clips import draw_clip


def talking(avatar: Avatar, seed: int = 0, frames: int = 30) -> tuple[Motion, Tensor]:
    """Motion of three independent fields, and their numbers (T, 3)."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(frames, 3, generator=generator) * 3
    fields = torch.cat([numbers, torch.zeros(frames, 1)], dim=1)
    shift = torch.einsum("tf,fnd->tnd", fields, mouth_fields(avatar))
    rest = still(avatar, frames)
    return replace(rest, shift=shift), numbers


def test_three_motions_need_three_components_and_come_back(avatar: Avatar) -> None:
    motion, _ = talking(avatar)
    basis = principal_components([(avatar, motion)], 3)
    assert basis.kept == pytest.approx(1, abs=1e-5)
    values = basis.encode(avatar, motion)
    assert torch.allclose(values.std(0), torch.ones(3), atol=0.05)
    again = basis.bind(avatar).motion(values)
    lips = torch.isin(avatar.particles.part, torch.tensor([Part.UPPER_LIP, Part.LOWER_LIP]))
    assert float((again.shift[:, lips] - motion.shift[:, lips]).abs().max()) < 0.15
    assert principal_components([(avatar, motion)], 2).kept < 0.999


def test_another_face_opens_its_mouth_as_far_relative_to_its_size(avatar: Avatar) -> None:
    other = build(draw_clip(1_000_007, 0.2).frames[0], model_paths()["face_detector"], ReliefConfig(steps=0))
    motion, _ = talking(avatar)
    basis = principal_components([(avatar, motion)], 3)
    moved = basis.bind(other).motion(basis.encode(avatar, motion))
    gaps = torch.stack([lip_gap(avatar, motion) / avatar.unit, lip_gap(other, moved) / other.unit])
    assert float(torch.corrcoef(gaps)[0, 1]) > 0.99
    assert float(gaps[1].mean()) == pytest.approx(float(gaps[0].mean()), rel=0.2)
    body = torch.isin(other.particles.part, torch.tensor([Part.BODY, Part.LEFT_EYE, Part.RIGHT_EYE]))
    assert float(moved.shift[:, body].abs().max()) < 0.1


def test_lips_do_not_take_motion_from_across_the_line(avatar: Avatar) -> None:
    motion, numbers = talking(avatar)
    only_lower = numbers.clone()
    only_lower[:, [0, 2]] = 0
    fields = torch.cat([only_lower, torch.zeros(len(numbers), 1)], dim=1)
    shift = torch.einsum("tf,fnd->tnd", fields, mouth_fields(avatar))
    basis = principal_components([(avatar, replace(motion, shift=shift))], 1)
    moved = basis.bind(avatar).motion(torch.ones(1, 1))
    assert float(moved.shift[:, avatar.particles.part == Part.UPPER_LIP].abs().max()) < 1e-5
