"""IQA and ASE of a clip: Q-Align in image mode on one frame per second, averaged."""

import numpy as np

from perception.quality.qalign import QAlign


def one_frame_per_second(count: int, fps: float = 25.0) -> list[int]:
    """Indices int(fps * i) below `count`, as the video loader of Q-Align takes them."""
    return [index for index in (int(fps * i) for i in range(count)) if index < count]


def quality_of_clip(scorer: QAlign, frames: np.ndarray) -> dict[str, np.ndarray]:
    """`iqa` and `ase`, scalars 1..5, of frames (T, H, W, 3) uint8 RGB at 25 fps; `frames` holds how many were read."""
    images = [frames[i] for i in one_frame_per_second(len(frames))]
    ratings = scorer.rate(images, ("quality", "aesthetics"))
    iqa, ase = (np.asarray(ratings[task].scores.mean()) for task in ("quality", "aesthetics"))
    return {"iqa": iqa, "ase": ase, "frames": np.asarray(len(images))}
