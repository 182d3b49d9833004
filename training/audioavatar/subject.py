"""Subject of joint training: channels of motion to offsets of particles, and those to pictures and places in them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.config import RasterConfig
from audioavatar.graph import Graph
from audioavatar.motion import Motion, head_shares, pose
from audioavatar.particles import regions
from audioavatar.raster.render import render


class Subject(Protocol):
    """Who is rendered. Legend: T frames, N particles of D coordinates, C channels of motion."""

    rest: Tensor  # (N, D) canonical places
    region: Tensor  # (N,)
    graph: Graph
    diagonal: float  # of the picture, px

    def offsets(self, channels: Tensor) -> Any:
        """(T, C) -> the motion as the others take it."""
        ...

    def shift(self, motion: Any) -> Tensor:
        """Offsets (T, N, D) of the particles, px, without the head's motion."""
        ...

    def video(self, motion: Any) -> Tensor:
        """Frames (T, H, W, 3) in 0..1, with a gradient."""
        ...

    def tracks(self, motion: Any) -> Tensor:
        """Where particles are seen, (T, N, 2) px."""
        ...


class AvatarSubject:
    """An avatar, moved by what `motion` makes of channels."""

    def __init__(
        self, avatar: Avatar, motion: Callable[[Tensor], Motion], raster: RasterConfig = RasterConfig()
    ) -> None:
        self.avatar, self.offsets, self.raster = avatar, motion, raster
        self.rest, self.region = avatar.particles.mean[:, :2], regions(avatar.particles.part)
        self.graph, self.shares = avatar.graph, head_shares(avatar)
        self.diagonal = float(torch.tensor(avatar.size, dtype=torch.float64).norm())

    def shift(self, motion: Motion) -> Tensor:
        """As of Subject."""
        return motion.shift

    def video(self, motion: Motion) -> Tensor:
        """As of Subject, from the picture's own view."""
        return render(pose(self.avatar, motion, self.shares), self.avatar.camera, self.raster, self.avatar.backdrop)

    def tracks(self, motion: Motion) -> Tensor:
        """As of Subject."""
        return self.avatar.camera.project(pose(self.avatar, motion, self.shares).mean)[0]
