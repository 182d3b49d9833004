"""Refinement of an avatar's particles by its picture: colours and sizes, so that from the front they show it again."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from audioavatar.camera import Camera
from audioavatar.config import RasterConfig, ReliefConfig
from audioavatar.particles import Particles, join
from audioavatar.raster.projection import project
from audioavatar.raster.sparse import composite

_RASTER = RasterConfig(backend="torch")
_SWING = (0.0, 12.0, 0.0, -12.0)  # degrees, in turn: from where it is decided which particle lies before which
_REACH = 2  # px around a particle whose colours it may have
_MARGIN = 0.1  # beyond their range


def refined(skin: Particles, hidden: Particles, image: Tensor, backdrop: Tensor, mask: Tensor, camera: Camera,
            config: ReliefConfig) -> Particles:  # fmt: skip
    """Fit colours and sizes of `skin` to the picture (H, W, 3) uint8 by Adam; what is `hidden` in it stays.

    What a particle hides behind others is unseen from the front but not from the side, where others come to lie
    before it. So its colour may not leave those around it, and its place before and behind others is that of views
    from both sides in turn: without these two a swung camera shows bright and dark dots at every edge.
    """
    particles = join(skin, hidden)
    target = image.float() / 255
    inside = mask.float()
    colour, scale = particles.colour.clone().requires_grad_(), particles.log_scale.clone().requires_grad_()
    visible = (torch.arange(len(particles)) < len(skin))[:, None]
    darkest, brightest = _range_around(particles, image, camera)
    groups: list[dict[str, Any]] = [{"params": [colour]}, {"params": [scale]}]
    optimiser = torch.optim.Adam(groups, lr=config.rate)
    for step in range(config.steps):
        for group, rate in zip(optimiser.param_groups, (config.rate, config.rate / 2), strict=True):
            group["lr"] = rate * (1 - step / config.steps)
        current = replace(
            particles,
            colour=torch.where(visible, colour, particles.colour),
            log_scale=torch.where(visible, scale, particles.log_scale),
        )
        colours, coverage = _layers(current, camera, _SWING[step % len(_SWING)])
        image_now = colours[0] + (1 - coverage[0, ..., None]) * backdrop
        error = (image_now - target).abs().sum(-1)
        # Outside, nothing may be covered: compared by colour, the rim would take that of the backdrop.
        loss = (error * inside + coverage[0] * (1 - inside)).sum() / inside.sum()
        # Sizes may not run away: a particle that covers others is a spike from the side.
        loss = loss + 0.02 * (scale - particles.log_scale).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            colour.copy_(torch.minimum(torch.maximum(colour, darkest), brightest))
    return replace(
        particles,
        colour=torch.where(visible, colour.detach(), particles.colour),
        log_scale=torch.where(visible, scale.detach(), particles.log_scale),
    )


def _layers(particles: Particles, camera: Camera, yaw: float) -> tuple[Tensor, Tensor]:
    """What the camera sees, but with particles before each other as they are from `yaw` degrees beside it."""
    splats = project(particles, camera, _RASTER.blur, _RASTER.near)
    if yaw:
        with torch.no_grad():
            splats = splats._replace(depth=project(particles, camera.turned(yaw), _RASTER.blur, _RASTER.near).depth)
    return composite(splats, camera.width, camera.height, _RASTER)


def _range_around(particles: Particles, image: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """The lowest and highest colour (N, 3) in 0..1 that each particle may take: those of the pixels around it."""
    pixel, _ = camera.project(particles.mean)
    column, row = (
        pixel[:, axis].long().clamp(0, size - 1).numpy() for axis, size in ((0, image.shape[1]), (1, image.shape[0]))
    )
    square = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)
    pixels = image.numpy()
    low = torch.from_numpy(cv2.erode(pixels, square)[row, column]).float() / 255
    high = torch.from_numpy(cv2.dilate(pixels, square)[row, column]).float() / 255
    return (low - _MARGIN).clamp_min(0), (high + _MARGIN).clamp_max(1)
