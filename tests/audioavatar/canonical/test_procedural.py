"""The analytic person: labels, densities, motions."""

import torch

from audioavatar.camera import frontal_camera
from audioavatar.canonical.procedural import motion_basis, procedural_avatar
from audioavatar.particles import FACE, HAND, Part, regions
from audioavatar.raster.render import layers


def test_the_same_arguments_give_the_same_particles() -> None:
    assert torch.equal(procedural_avatar(300, 3).mean, procedural_avatar(300, 3).mean)
    assert not torch.equal(procedural_avatar(300, 3).mean, procedural_avatar(300, 4).mean)


def test_every_part_is_there_and_faces_and_hands_are_dense() -> None:
    avatar = procedural_avatar(2000)
    assert set(avatar.part.tolist()) == {*Part, *range(20, 30)} - {Part.TEETH, Part.CAVITY}
    per_area = {}
    for part, area in ((Part.BODY, 1314.0), (Part.LEFT_HAND, 42.4)):
        per_area[part] = int((avatar.part == part).sum()) / area
    skin = (avatar.part == Part.FACE_UPPER) | (avatar.part == Part.FACE_LOWER)
    head = int(skin.sum()) / 942.0
    assert abs(per_area[Part.LEFT_HAND] / per_area[Part.BODY] / 8 - 1) < 0.1
    assert abs(head / per_area[Part.BODY] / 16 - 1) < 0.1


def test_motions_touch_what_they_are_called_after() -> None:
    avatar = procedural_avatar(800)
    basis, region = motion_basis(avatar), regions(avatar.part)
    moves = {name: offset.norm(dim=1) > 0 for name, offset in basis.items()}
    assert not bool(moves["jaw"][avatar.part == Part.UPPER_LIP].any())
    assert bool(moves["jaw"][avatar.part == Part.LOWER_LIP].all())
    assert set(region[moves["blink"]].tolist()) == {FACE} and set(region[moves["flex"]].tolist()) == {HAND}


def test_the_person_is_seen_in_the_middle_of_the_picture() -> None:
    colour, coverage = layers(procedural_avatar(1200), frontal_camera(64, 64))
    assert float(coverage[0, 28, 32]) > 0.9 and float(coverage[0, 2, 2]) < 0.1
    red, _, blue = (float(colour[0, 54, 32, channel]) for channel in range(3))
    assert blue > red  # clothes
