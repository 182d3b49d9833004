"""Tracks: where some particles are seen in each frame of a clip, by a tracker; what ties a fit to more than colours.

Legend: T frames, N particles, M tracked ones.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.camera import Camera
from audioavatar.config import RasterConfig
from audioavatar.motion import Motion, pose
from audioavatar.particles import Particles
from audioavatar.raster.render import layers, render

EVERY = 4  # of the particles that are seen, one is tracked
ROUND_TRIP = 0.75  # px that flow there and back may miss by
_COVERED, _DEEPER = 0.5, 0.8  # a particle is seen where the picture is covered and it is no px deeper than what is seen


@dataclass(frozen=True)
class Tracks:
    """`index` (M,) of the tracked particles, their `position` (T, M, 2) in px of the picture, and `visible` (T, M)."""

    index: Tensor
    position: Tensor
    visible: Tensor


class Tracker(Protocol):
    """Anything that follows particles through a clip."""

    def __call__(self, avatar: Avatar, frames: Tensor) -> Tracks:
        """An avatar and frames (T, H, W, 3) uint8 of its person -> tracks."""
        ...


@dataclass(frozen=True)
class ExactTracker:
    """Tracks of a synthetic scene, whose `motion` is known; one particle in `every`."""

    motion: Motion
    every: int = EVERY

    def __call__(self, avatar: Avatar, frames: Tensor) -> Tracks:
        """As of Tracker; the frames are not looked at."""
        index = _tracked(avatar, self.every)
        posed = pose(avatar, self.motion)
        position, _ = avatar.camera.project(posed.mean[:, index])
        return Tracks(index, position, seen(posed, avatar.camera)[:, index])


def flow_tracks(avatar: Avatar, frames: Tensor) -> Tracks:
    """Tracks by optical flow (Farneback 2003) from frame to frame, begun in the avatar's own picture.

    A track ends where the flow there and back misses its beginning by more than `ROUND_TRIP` px.
    """
    index = _tracked(avatar, EVERY)
    point, _ = avatar.camera.project(avatar.particles.mean[index])
    with torch.no_grad():
        own = render(avatar.particles, avatar.camera, RasterConfig(backend="torch"), avatar.backdrop)[0]
    images = [_grey((own.clamp(0, 1) * 255).numpy()), *(_grey(frame) for frame in frames.numpy())]
    place, alive, positions, visible = point.numpy(), np.ones(len(index), bool), [], []
    for before, after in zip(images[:-1], images[1:], strict=True):
        moved = place + _sampled(_flow(before, after), place)
        returned = moved + _sampled(_flow(after, before), moved)
        alive = alive & (np.linalg.norm(returned - place, axis=1) < ROUND_TRIP)
        place = moved
        positions.append(place)
        visible.append(alive)
    return Tracks(index, torch.from_numpy(np.stack(positions)).float(), torch.from_numpy(np.stack(visible)))


def seen(particles: Particles, camera: Camera) -> Tensor:
    """Which particles (T, N) are not hidden by others, at their centres."""
    pixel, depth = camera.project(particles.mean if particles.mean.ndim == 3 else particles.mean[None])
    size = torch.tensor([camera.width, camera.height])
    column, row = pixel.floor().long().unbind(-1)
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    column, row = column.clamp(0, camera.width - 1), row.clamp(0, camera.height - 1)
    found = []
    with torch.no_grad():
        for t in range(len(depth)):
            frame = replace(
                particles,
                mean=particles.mean.reshape(-1, *particles.mean.shape[-2:])[t],
                quaternion=particles.quaternion.reshape(-1, *particles.quaternion.shape[-2:])[t],
                log_scale=particles.log_scale.reshape(-1, *particles.log_scale.shape[-2:])[t],
                colour=depth[t][:, None],
            )
            summed, coverage = (each[0] for each in layers(frame, camera, RasterConfig(backend="torch")))
            front = summed[..., 0] / coverage.clamp_min(1e-6)
            at = (row[t], column[t])
            found.append(inside[t] & (coverage[at] > _COVERED) & (depth[t] < front[at] + _DEEPER))
    return torch.stack(found)


def _tracked(avatar: Avatar, every: int) -> Tensor:
    return seen(avatar.particles, avatar.camera)[0].nonzero()[:, 0][::every]


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_RGB2GRAY)


def _flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W, 2) px; windows of 9 px on three scales."""
    start = np.zeros((*before.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(before, after, start, 0.5, 3, 9, 5, 5, 1.1, 0)


def _sampled(flow: np.ndarray, place: np.ndarray) -> np.ndarray:
    x, y = (place.astype(np.float32) - 0.5).T
    return cv2.remap(flow, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
