"""EWA projection of 3D Gaussians: pixel positions, 2D covariances and depths."""

from typing import NamedTuple

import torch
from torch import Tensor

from audioavatar.camera import Camera
from audioavatar.particles import Particles, rotation_matrix


class Splats(NamedTuple):
    """Projected particles of T frames: `centre` (T, N, 2) px, `covariance` (T, N, 3) as xx, xy, yy in px^2, `depth`
    (T, N), `opacity` (T, N) in 0..1, `colour` (T, N, C)."""

    centre: Tensor
    covariance: Tensor
    depth: Tensor
    opacity: Tensor
    colour: Tensor


def project(particles: Particles, camera: Camera, blur: float, near: float) -> Splats:
    """Project particles, moved or not, into a camera; `blur` px^2 is added to both variances.

    Particles nearer than `near` get opacity 0 and a harmless place. Zwicker et al., "EWA splatting" (2002).
    """
    mean = particles.mean if particles.mean.ndim == 3 else particles.mean[None]
    frames, count = mean.shape[:2]
    rotation = camera.rotation.to(mean)
    view = mean @ rotation.T + camera.translation.to(mean)
    seen = view[..., 2] > near
    z = torch.where(seen, view[..., 2], 1.0)
    x, y = view[..., 0] / z, view[..., 1] / z
    centre = torch.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], dim=-1)
    # Rows of J R: how a pixel moves with a point of the world.
    across = camera.fx / z[..., None] * (rotation[0] - x[..., None] * rotation[2])
    down = camera.fy / z[..., None] * (rotation[1] - y[..., None] * rotation[2])
    axes = rotation_matrix(particles.quaternion) * particles.log_scale.exp()[..., None, :]
    a = (axes * across[..., None]).sum(-2)
    d = (axes * down[..., None]).sum(-2)
    covariance = torch.stack([(a * a).sum(-1) + blur, (a * d).sum(-1), (d * d).sum(-1) + blur], dim=-1)
    opacity = torch.where(seen, particles.opacity.sigmoid().expand(frames, count), 0.0)
    colour = particles.colour.expand(frames, count, particles.colour.shape[-1])
    return Splats(centre, covariance, z, opacity, colour)
