"""Particles: offsets of zero change no bit, rotations compose, regions follow from parts."""

import torch

from audioavatar.canonical.procedural import procedural_avatar
from audioavatar.particles import (
    BODY,
    FACE,
    HAND,
    Part,
    join,
    quaternion_of,
    quaternion_product,
    regions,
    rotation_matrix,
)


def test_zero_offsets_give_the_same_particles() -> None:
    avatar = procedural_avatar(200)
    zero = torch.zeros(2, len(avatar), 3)
    moved = avatar.moved(zero, zero, zero)
    assert torch.equal(moved.mean[1], avatar.mean) and torch.equal(moved.log_scale[0], avatar.log_scale)
    assert torch.equal(moved.quaternion[0], avatar.quaternion)


def test_rotation_vectors_turn_by_their_length() -> None:
    vector = torch.tensor([0.0, 0, torch.pi / 2], requires_grad=True)
    matrix = rotation_matrix(quaternion_of(vector))
    assert torch.allclose(matrix @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    (gradient,) = torch.autograd.grad(
        rotation_matrix(quaternion_of(zero := torch.zeros(3, requires_grad=True))).sum(), zero
    )
    assert bool(gradient.isfinite().all())


def test_products_of_quaternions_are_products_of_rotations() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    product = rotation_matrix(quaternion_product(a, b))
    assert torch.allclose(product, rotation_matrix(a) @ rotation_matrix(b), atol=1e-5)


def test_regions_and_joins() -> None:
    parts = torch.tensor([Part.BODY, Part.LOWER_LIP, Part.LEFT_FINGER_1 + 2, Part.RIGHT_HAND, Part.HAIR, Part.NECK])
    assert regions(parts).tolist() == [BODY, FACE, HAND, HAND, FACE, BODY]
    avatar = procedural_avatar(100)
    both = join(avatar, avatar.chosen(avatar.part == Part.UPPER_LIP))
    assert len(both) == len(avatar) + int((avatar.part == Part.UPPER_LIP).sum())
