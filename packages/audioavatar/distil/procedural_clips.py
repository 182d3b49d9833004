"""Clips of the analytic person: a sound, the motion it stands for, and the pictures of that motion.

Six tones swell with the six known motions, so that audio says everything that moves; no file is needed. Legend: T
frames, N particles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audioavatar.camera import Camera, frontal_camera
from audioavatar.canonical.procedural import lip_line, motion_basis, procedural_avatar
from audioavatar.config import RasterConfig
from audioavatar.graph import Graph, neighbour_graph
from audioavatar.particles import Particles, regions
from audioavatar.raster.render import render
from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME

SIDE = 64
_TONES = (250.0, 500.0, 1000.0, 1900.0, 3200.0, 5200.0)  # Hz, each in bands of its own
_SMOOTH = 5  # frames over which motion is averaged
_RASTER = RasterConfig(backend="torch")
_BACKDROP = torch.tensor([0.55, 0.60, 0.55])


@dataclass(frozen=True)
class ProceduralClip:
    """`wave` (T * 640,) mono 16 kHz, and how far each known motion has swung (T, 6), about 0 to 1."""

    wave: np.ndarray
    swing: Tensor


class ProceduralPerson:
    """The analytic person with its motions (6, N, 3), seen by a camera in front; what joint training asks of a subject
    (training/audioavatar/subject.py), whose channels are the swings."""

    def __init__(self, count: int = 300) -> None:
        self.particles: Particles = procedural_avatar(count)
        self.basis = torch.stack(list(motion_basis(self.particles).values()))
        self.camera: Camera = frontal_camera(SIDE, SIDE)
        self.rest, self.region = self.particles.mean, regions(self.particles.part)
        self.graph: Graph = neighbour_graph(self.rest, self.particles.part, lip_line=lip_line())
        self.diagonal = SIDE * 2**0.5

    def offsets(self, swing: Tensor) -> Tensor:
        """Swings (T, 6) -> offsets (T, N, 3) in px."""
        return torch.einsum("tk,knd->tnd", swing, self.basis)

    def shift(self, offsets: Tensor) -> Tensor:
        """Offsets (T, N, 3) are shifts."""
        return offsets

    def video(self, offsets: Tensor) -> Tensor:
        """Offsets (T, N, 3) -> frames (T, H, W, 3) in 0..1, with a gradient."""
        return render(self.particles.moved(offsets), self.camera, _RASTER, _BACKDROP)

    def tracks(self, offsets: Tensor) -> Tensor:
        """Where every particle is seen, (T, N, 2) px."""
        return self.camera.project(self.particles.mean + offsets)[0]


def procedural_clip(seed: int, frames: int) -> ProceduralClip:
    """A random smooth motion and its sound."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(len(_TONES), frames + _SMOOTH - 1, generator=generator)
    swing = 0.5 + 0.5 * raw.unfold(1, _SMOOTH, 1).mean(-1).T * _SMOOTH**0.5 * 0.6
    loud = (2 * (swing.clamp(-0.5, 1.5) - 1)).exp().numpy()
    time = np.arange(frames * SAMPLES_PER_FRAME) / AUDIO_RATE
    middles = (np.arange(frames) + 0.5) * SAMPLES_PER_FRAME / AUDIO_RATE
    tones = [np.interp(time, middles, loud[:, k]) * np.sin(2 * np.pi * hertz * time) for k, hertz in enumerate(_TONES)]
    return ProceduralClip((0.1 * np.sum(tones, axis=0)).astype(np.float32), swing)


def procedural_clips(seeds: Sequence[int], frames: int) -> list[ProceduralClip]:
    """A clip of each seed."""
    return [procedural_clip(seed, frames) for seed in seeds]


def to_teacher(frames: Tensor) -> Tensor:
    """Frames (T, H, W, 3) in 0..1 -> (1, 3, T, H, W) in [-1, 1], as teachers take a clip."""
    return (2 * frames - 1).permute(3, 0, 1, 2)[None]
