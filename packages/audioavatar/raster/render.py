"""Pictures of particles: one call for every backend."""

import importlib.util

import torch
from torch import Tensor

from audioavatar.camera import Camera
from audioavatar.config import RasterConfig
from audioavatar.particles import Particles
from audioavatar.raster.projection import project
from audioavatar.raster.sparse import composite


def render(
    particles: Particles, camera: Camera, config: RasterConfig = RasterConfig(), background: Tensor | None = None
) -> Tensor:
    """Particles, (N,) or moved (T, N), seen by a camera -> (T, H, W, 3), over a background (..., H, W, 3) or black."""
    colour, coverage = layers(particles, camera, config)
    return colour if background is None else colour + (1 - coverage)[..., None] * background


def layers(particles: Particles, camera: Camera, config: RasterConfig = RasterConfig()) -> tuple[Tensor, Tensor]:
    """As `render`: premultiplied colour (T, H, W, 3) and coverage (T, H, W) in 0..1."""
    if uses_gsplat(config, particles.mean.device):
        return _by_gsplat(particles, camera, config)
    splats = project(particles, camera, config.blur, config.near)
    return composite(splats, camera.width, camera.height, config)


def uses_gsplat(config: RasterConfig, device: torch.device) -> bool:
    """Whether pictures are made by gsplat: if it is asked for, or by "auto" on CUDA where it is installed."""
    if config.backend == "auto":
        return device.type == "cuda" and importlib.util.find_spec("gsplat") is not None
    return config.backend == "gsplat"


def _by_gsplat(particles: Particles, camera: Camera, config: RasterConfig) -> tuple[Tensor, Tensor]:
    """gsplat's CUDA kernels; its alpha ceiling and end of rays are compiled in and equal the defaults of 1.5."""
    from gsplat import rasterization

    mean = particles.mean if particles.mean.ndim == 3 else particles.mean[None]
    view = torch.eye(4).to(mean)
    view[:3, :3], view[:3, 3] = camera.rotation.to(mean), camera.translation.to(mean)
    lens = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]).to(mean)
    quaternion, scale = (
        each.expand(*mean.shape[:2], each.shape[-1]) for each in (particles.quaternion, particles.log_scale.exp())
    )
    images = [
        rasterization(
            mean[t], quaternion[t], scale[t], particles.opacity.sigmoid(), particles.colour, view[None], lens[None],
            camera.width, camera.height, near_plane=config.near, eps2d=config.blur,
        )[:2]
        for t in range(len(mean))
    ]  # fmt: skip
    colours, coverages = zip(*images, strict=True)
    return torch.cat(colours), torch.cat(coverages)[..., 0]
