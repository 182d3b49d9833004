"""Damage of known severity to drawn images, to train and test judges with.

Severity runs from 0 (nothing wrong) to 1 (bad) and is a stated rule on the parameters, never measured on the image.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.media.video import read_video
from common.media.write import write_video

CLEAN_CRF = 18  # what the project's own clips are written with: part of a good image


@dataclass(frozen=True)
class Damage:
    """Technical faults: blur (Gaussian sigma, px), noise (standard deviation of 255), reduction (the image is made
    this many times smaller and enlarged again), exposure (gain before clipping), crf (H.264; 0 = not coded)."""

    blur: float = 0.0
    noise: float = 0.0
    reduction: float = 1.0
    exposure: float = 1.0
    crf: int = CLEAN_CRF

    def parts(self) -> np.ndarray:
        """Severity 0..1 of each fault (5,): sigma 2, noise 25, reduction 4, gain 2 and crf 45 are each 1."""
        spread = (self.blur / 2, self.noise / 25, (self.reduction - 1) / 3)
        return np.clip([*spread, self.exposure - 1, (self.crf - 20) / 25], 0, 1)

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Everything but the coding, on RGB uint8 (T, H, W, 3)."""
        size = frames.shape[2], frames.shape[1]
        small = max(2, round(size[0] / self.reduction)), max(2, round(size[1] / self.reduction))
        damaged = []
        for frame in frames:
            if self.reduction > 1:
                frame = cv2.resize(cv2.resize(frame, small, interpolation=cv2.INTER_AREA), size)
            if self.blur > 0:
                frame = cv2.GaussianBlur(frame, (0, 0), self.blur)
            damaged.append(frame)
        values = np.stack(damaged).astype(np.float32) * self.exposure
        return _bytes(values + rng.normal(0, self.noise, values.shape) if self.noise else values)


@dataclass(frozen=True)
class Composition:
    """Aesthetic faults: shift of the image (in sides), zoom, contrast (1 = kept), colour cast (gain of R, G, B)."""

    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    contrast: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def apply(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames RGB uint8 (T, H, W, 3) and face boxes (T, 4) xyxy, both moved; edges are repeated outwards."""
        height, width = frames.shape[1:3]
        centre, moved = np.array([width, height]) / 2, np.array(self.shift) * (width, height)
        offset = centre + moved - self.zoom * centre
        matrix = np.array([[self.zoom, 0, offset[0]], [0, self.zoom, offset[1]]])
        size = (width, height)
        warped = np.stack([cv2.warpAffine(f, matrix, size, borderMode=cv2.BORDER_REPLICATE) for f in frames])
        toned = (warped.astype(np.float32) - 128) * self.contrast + 128
        return _bytes(toned * np.array(self.cast, np.float32)), boxes * self.zoom + np.tile(offset, 2)

    def parts(self, boxes: np.ndarray, side: int) -> np.ndarray:
        """Severity 0..1 of each fault (4,): face off the middle column (by a third of the side = 1), face cut by the
        edge (half = 1), contrast lost (to a third = 1), colour cast (channels apart by 0.6 = 1); `boxes` as moved."""
        off_centre = np.abs(boxes[:, [0, 2]].mean() / side - 0.5) * 3
        inside = np.clip(boxes, 0, side)
        hidden = 1 - float((_area(inside) / _area(boxes)).mean())
        # A drawn face leaves its frame by a few pixels when it nods: not a fault.
        cut = (hidden - 0.05) * 2
        return np.clip([off_centre - 0.15, cut, (1 - self.contrast) * 1.5, np.ptp(self.cast) / 0.6], 0, 1)


def draw_damage(rng: np.random.Generator) -> Damage:
    """Nothing (one in four), one fault, or (one in six) two, each of uniform severity; half the coding is clean."""
    faults: dict[str, Any] = {
        "blur": rng.uniform(0.1, 2.6),
        "noise": rng.uniform(1, 40),
        "reduction": rng.uniform(1.1, 4.5),
        "exposure": rng.uniform(1.1, 2.2),
        "crf": int(rng.integers(20, 48)),
    }
    count = rng.choice([0, 1, 2], p=[0.25, 0.58, 0.17])
    weights = np.array([0.3, 0.3, 0.12, 0.1, 0.18])
    chosen = rng.choice(list(faults), size=count, replace=False, p=weights)
    undamaged = Damage(crf=int(rng.choice([0, CLEAN_CRF])))
    return replace(undamaged, **{str(name): faults[name] for name in chosen})


def draw_composition(rng: np.random.Generator) -> Composition:
    """Nothing (two in five), or some of shift, zoom, flat contrast and colour cast."""
    if rng.random() < 0.4:
        return Composition()
    moved, flat, tinted = rng.random(3) < (0.6, 0.4, 0.4)
    return Composition(
        shift=(rng.uniform(-0.4, 0.4), rng.uniform(-0.25, 0.25)) if moved else (0.0, 0.0),
        zoom=rng.uniform(0.8, 1.25) if moved else 1.0,
        contrast=rng.uniform(0.3, 1.0) if flat else 1.0,
        cast=tuple(rng.uniform(0.5, 1.1, 3)) if tinted else (1.0, 1.0, 1.0),
    )


def code(frames: np.ndarray, crf: int) -> np.ndarray:
    """Through H.264 at `crf` and back, RGB uint8 (T, H, W, 3) both ways; 0 leaves them alone."""
    if not crf:
        return frames
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "coded.mp4")
        write_video(path, frames, None, crf=crf)
        return read_video(path)


def together(parts: np.ndarray) -> np.ndarray:
    """Severity 0..1 of faults that come together: 1 - the product of what each leaves, over the last axis."""
    return 1 - np.prod(1 - parts, axis=-1)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
