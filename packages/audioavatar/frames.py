"""Frames of a moving avatar: the camera, the backdrop and the way the picture is made, for motion of any length."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from audioavatar.avatar import Avatar
from audioavatar.camera import Camera
from audioavatar.config import RasterConfig, SayConfig
from audioavatar.motion import Motion, head_shares, pose
from audioavatar.particles import Particles
from audioavatar.raster.render import render


class FrameRenderer:
    """Renders an avatar over its backdrop, frame by frame: a frame's bits do not depend on those beside it."""

    def __init__(self, avatar: Avatar, config: SayConfig = SayConfig(), raster: RasterConfig = RasterConfig()) -> None:
        self.avatar, self.config, self.raster = avatar, config, raster
        self.camera = avatar.camera.scaled(config.longest_side / max(avatar.size))
        size = (self.camera.height, self.camera.width)
        backdrop = F.interpolate(avatar.backdrop.permute(2, 0, 1)[None], size, mode="bilinear")
        self._backdrop, self._shares = backdrop[0].permute(1, 2, 0), head_shares(avatar)
        centre = avatar.mouth.centre.tolist()
        self._pivot = (centre[0], centre[1], float(avatar.particles.mean[:, 2].mean()))

    def frames(self, motion: Motion, first: int = 0) -> Iterator[np.ndarray]:
        """Frames uint8 RGB (H, W, 3) of a motion whose first frame has the number `first`: the camera's swing goes by
        it."""
        for t in range(len(motion)):
            yield self._frame(Motion(*(part[t : t + 1] for part in vars(motion).values())), first + t)

    def view(self, number: int) -> Camera:
        """The camera of a frame: it swings by `turntable` degrees to both sides, there and back in `turn_frames`."""
        angle = self.config.turntable * float(np.sin(2 * np.pi * number / self.config.turn_frames))
        return self.camera.turned(angle, 0.0, self._pivot) if self.config.turntable else self.camera

    @torch.inference_mode()
    def _frame(self, motion: Motion, number: int) -> np.ndarray:
        posed = pose(self.avatar, motion, self._shares)
        frame = Particles(
            posed.mean[0], posed.quaternion[0], posed.log_scale[0], posed.opacity, posed.colour, posed.part
        )
        image = render(frame, self.view(number), self.raster, self._backdrop)[0]
        return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
