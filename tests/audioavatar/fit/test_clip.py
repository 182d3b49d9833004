"""The fit of a clip: it finds a known motion back, and without rigidity it does not, however good the picture."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.config import FitConfig
from audioavatar.fit.clip import ClipFit, fit_clip
from audioavatar.fit.fields import FIELDS, mouth_fields
from audioavatar.motion import Motion, lip_gap, pose, still
from audioavatar.particles import Part
from audioavatar.raster.render import render
from common.errors import InputError

FRAMES = 4
PHOTOMETRIC = replace(
    FitConfig(), arap=0, locality=0, smooth=0, growth=0, hinge=0, trajectory=0, isometry=0, spectral=0, field_steps=0,
    start_open=0, particle_stages=((12, 1.0, 0.0, 0.25, 0.04), (18, 0.0, 0.0, 0.12, 0.03)),
)  # fmt: skip


def talking(avatar: Avatar) -> Motion:
    """A head that drifts and a mouth that opens by up to 6 px, spreads and rounds."""
    t = torch.linspace(0, 1, FRAMES)
    head = torch.stack([1.5 * (3 * t).sin(), 0.8 * t, 0.04 * (4 * t).sin()], dim=1)
    opening = 3 * (1 - (6.28 * t).cos()) / 2
    fields = torch.stack([opening, opening, 0.8 * (5 * t).sin(), 0.3 * opening], dim=1)
    shift = torch.einsum("tf,fnd->tnd", fields, mouth_fields(avatar))
    return Motion(head, shift, torch.zeros_like(shift), torch.zeros(FRAMES, len(GESTURES)))


def filmed(avatar: Avatar, motion: Motion) -> Tensor:
    picture = render(pose(avatar, motion), avatar.camera, background=avatar.backdrop)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def fits(avatar: Avatar) -> tuple[Motion, ClipFit, ClipFit]:
    truth = talking(avatar)
    frames = filmed(avatar, truth)
    return truth, fit_clip(avatar, frames, FitConfig(field_steps=24)), fit_clip(avatar, frames, PHOTOMETRIC)


def error(avatar: Avatar, fit: ClipFit, truth: Motion) -> float:
    """Mean distance of the particles of both lips from their true places, relative to that at rest."""
    lips = torch.isin(avatar.particles.part, torch.tensor([Part.UPPER_LIP, Part.LOWER_LIP]))
    places, found = (pose(avatar, motion).mean[:, lips, :2] for motion in (truth, fit.motion))
    rest = avatar.particles.mean[lips, :2]
    return float((found - places).norm(dim=-1).mean() / (rest - places).norm(dim=-1).mean())


def test_a_known_motion_is_found_and_photometric_error_alone_does_not_find_it(
    avatar: Avatar, fits: tuple[Motion, ClipFit, ClipFit]
) -> None:
    truth, fit, control = fits
    assert error(avatar, fit, truth) < 0.3
    assert error(avatar, control, truth) > 0.6
    # A good picture proves nothing about motion; distortion tells.
    assert fit.psnr > 26 and control.psnr > 22 and control.arap > 4 * fit.arap


def test_the_gap_of_the_lips_follows(avatar: Avatar, fits: tuple[Motion, ClipFit, ClipFit]) -> None:
    truth, fit, _ = fits
    gaps = torch.stack([lip_gap(avatar, truth), lip_gap(avatar, fit.motion)])
    assert float(torch.corrcoef(gaps)[0, 1]) > 0.9 and float(gaps[1].max()) == pytest.approx(
        float(gaps[0].max()), rel=0.4
    )


def test_fields_move_what_they_are_called_after(avatar: Avatar) -> None:
    up, down, out, teeth = mouth_fields(avatar)
    part = avatar.particles.part
    assert len(FIELDS) == 4
    upper, lower, body = (part == label for label in (Part.UPPER_LIP, Part.LOWER_LIP, Part.BODY))
    assert float(up[upper, 1].min()) < -0.9 and not up[lower].any() and not up[body].any()
    assert float(down[lower, 1].max()) > 0.9 and not down[upper].any() and not down[body].any()
    assert float(out[upper, 0].max()) > 0.7 and float(out[upper, 0].min()) < -0.7
    assert teeth[part == Part.TEETH, 1].tolist() == pytest.approx([1.0] * int((part == Part.TEETH).sum()))
    assert not teeth[part != Part.TEETH].any()


def test_no_motion_leaves_every_bit(avatar: Avatar) -> None:
    posed = pose(avatar, still(avatar, 2))
    assert torch.equal(posed.mean[1], avatar.particles.mean)
    assert torch.equal(posed.log_scale[1], avatar.particles.log_scale)


def test_frames_of_another_size_are_refused(avatar: Avatar) -> None:
    with pytest.raises(InputError, match="the avatar was built at"):
        fit_clip(avatar, torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
