"""Refined colours: none that the picture does not have nearby, so that a swung camera shows no dots."""

import cv2
import numpy as np
import pytest
import torch

from audioavatar.avatar import Avatar
from audioavatar.canonical import refine
from audioavatar.config import ReliefConfig
from audioavatar.particles import Part
from audioavatar.raster.render import render
from audioavatar.say import build
from miniature.weights import model_paths


def light(avatar: Avatar, yaw: float) -> np.ndarray:
    """Luminance (H, W) in 0..255 of the avatar seen from `yaw` degrees beside its camera."""
    pivot = (*avatar.mouth.centre.tolist(), float(avatar.particles.mean[:, 2].mean()))
    picture = render(avatar.particles, avatar.camera.turned(yaw, 0.0, pivot), background=avatar.backdrop)[0]
    return 255 * picture.clamp(0, 1).mean(-1).numpy()


def dots(avatar: Avatar, yaw: float) -> float:
    """How much the eyes and forehead of a swung view are brighter or darker, in the mean, than anything within the
    reach of the swing in the front view."""
    x0, y0, x1, y1 = avatar.face.tolist()
    reach = np.ones((3, 2 * round(0.12 * (x1 - x0)) + 1), np.uint8)
    front, swung = light(avatar, 0), light(avatar, yaw)
    beyond = np.maximum(swung - cv2.dilate(front, reach), cv2.erode(front, reach) - swung).clip(0)
    inset = 0.1 * (x1 - x0)
    return float(beyond[int(y0) : int(y0 + 0.55 * (y1 - y0)), int(x0 + inset) : int(x1 - inset)].mean())


def test_no_particle_of_the_skin_has_a_colour_that_the_picture_does_not_have_there(
    avatar: Avatar, portrait: np.ndarray
) -> None:
    made = (int(Part.TEETH), int(Part.CAVITY))  # and the lids, the last of all
    skin = (~torch.isin(avatar.particles.part, torch.tensor(made))).nonzero()[:, 0]
    skin = skin[~(avatar.gestures[0, skin].norm(dim=-1) > 0)]
    pixel, _ = avatar.camera.project(avatar.particles.mean[skin])
    column, row = pixel.long().clamp(0, 63).numpy().T
    square = np.ones((5, 5), np.uint8)
    low, high = cv2.erode(portrait, square)[row, column] / 255, cv2.dilate(portrait, square)[row, column] / 255
    colour = avatar.particles.colour[skin].numpy()
    assert (colour > low - 0.1001).all() and (colour < high + 0.1001).all()


def test_a_swung_view_shows_no_dots_above_the_eyes(
    avatar: Avatar, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = dots(avatar, -15) + dots(avatar, 15)
    monkeypatch.setattr(refine, "_MARGIN", 1.0)
    monkeypatch.setattr(refine, "_SWING", (0.0,))
    free = build(portrait, model_paths()["face_detector"], ReliefConfig())
    assert mended < 0.75 * (dots(free, -15) + dots(free, 15))
