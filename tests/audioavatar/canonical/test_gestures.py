"""Gestures of a drawn portrait: lids that hide the eyes, hands where they are drawn, a trunk behind them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.config import ReliefConfig
from audioavatar.motion import blinks, pose, still
from audioavatar.particles import HAND, Part, regions
from audioavatar.raster.render import layers, render
from audioavatar.say import build
from miniature.weights import model_paths
from miniature.world.clips import draw_clip


@pytest.fixture(scope="module")
def half_body() -> Avatar:
    portrait = draw_clip(1_000_000, 0.2, "half").frames[0]
    return build(portrait, model_paths()["face_detector"], ReliefConfig(size=96, steps=0))


def gestured(avatar: Avatar, **amounts: float) -> Tensor:
    """The picture (H, W, 3) of an avatar with gestures, by their names with underscores."""
    motion = still(avatar, 1)
    for name, amount in amounts.items():
        motion.gesture[0, GESTURES.index(name.replace("_", " "))] = amount
    return render(pose(avatar, motion), avatar.camera, background=avatar.backdrop)[0]


def test_closed_lids_hide_the_white_of_the_eyes_and_half_closed_ones_half(avatar: Avatar, portrait: np.ndarray) -> None:
    white = torch.from_numpy((portrait.min(axis=2) > 200) & (np.arange(64) < 34)[:, None])
    assert int(white.sum()) > 20
    light = [float(gestured(avatar, blink=amount)[white].mean()) for amount in (0.0, 0.5, 1.0)]
    skin = float(avatar.particles.colour[avatar.particles.part == Part.FACE_UPPER].mean())
    assert light[0] > 0.75 > light[1] > light[2] and light[2] < skin + 0.1


def test_brows_rise_and_nothing_else_does(avatar: Avatar) -> None:
    moved = avatar.gestures[GESTURES.index("brows")]
    part = avatar.particles.part
    still_parts = [Part.LEFT_EYE, Part.UPPER_LIP, Part.LOWER_LIP, Part.CAVITY, Part.NECK, Part.BODY]
    assert -1 <= float(moved[:, 1].min()) < -0.8 and not moved[torch.isin(part, torch.tensor(still_parts))].any()


def test_hands_are_found_where_they_are_drawn_and_move_with_their_arms(half_body: Avatar) -> None:
    part, place = half_body.particles.part, half_body.particles.mean[:, :2] + 48
    assert int((regions(part) == HAND).sum()) > 150
    for hand, x in ((Part.LEFT_HAND, 34.0), (Part.RIGHT_HAND, 62.0)):  # drawn at rest, 14 px beside the middle
        assert (place[part == hand].mean(0) - torch.tensor([x, 90.0])).norm() < 4
    across, down = (half_body.gestures[GESTURES.index(f"left hand {way}")] for way in ("across", "down"))
    assert bool((across[part == Part.LEFT_HAND, 0] == 1).all()) and bool((down[part == Part.LEFT_HAND, 1] == 1).all())
    arm = down[part == Part.LEFT_ARM, 1]
    assert 0 < float(arm.mean()) < 1 and not down[part == Part.RIGHT_HAND].any() and not down[part == Part.BODY].any()


def test_behind_a_lifted_hand_is_the_trunk_and_no_hole(half_body: Avatar) -> None:
    hand = half_body.particles.part == Part.LEFT_HAND
    column, row = (half_body.particles.mean[hand, :2].mean(0) + 48).long().tolist()
    lifted = gestured(half_body, left_hand_across=-8.0, left_hand_down=-14.0)
    trunk = half_body.particles.colour[half_body.particles.part == Part.BODY].median(0).values
    assert float((lifted[row, column] - trunk).abs().max()) < 0.25
    motion = still(half_body, 1)
    motion.gesture[0, 2:4] = torch.tensor([-8.0, -14.0])
    assert float(layers(pose(half_body, motion), half_body.camera)[1][0, row, column]) > 0.9


def test_a_face_without_hands_keeps_still_when_hands_are_moved(avatar: Avatar) -> None:
    assert torch.equal(gestured(avatar, left_hand_down=-10.0), gestured(avatar))
    motion = replace(still(avatar, 1), gesture=torch.ones(1, len(GESTURES)))
    assert torch.equal(pose(avatar, motion).log_scale[0], avatar.particles.log_scale)


def test_blinks_come_every_few_seconds_and_follow_from_seed_and_number() -> None:
    closed = blinks(3, 0, 1000)
    starts = ((closed > 0) & (torch.nn.functional.pad(closed, (1, 0))[:-1] == 0)).nonzero()[:, 0]
    assert int(starts.diff().min()) >= 35 and int(starts.diff().max()) <= 90 and float(closed.max()) == 1
    assert torch.equal(blinks(3, 410, 25), closed[410:435]) and not torch.equal(blinks(4, 0, 1000), closed)
