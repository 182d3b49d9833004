"""Drawn clips after H.264 and AAC, so that models train on what the pipeline reads from files."""

import tempfile
from pathlib import Path

import numpy as np

from common.media.audio import read_audio
from common.media.video import read_video
from common.media.write import write_video
from miniature.world.clips import DrawnClip


def record(clip: DrawnClip, crf: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and audio (T*640,) float32 of `clip` after being written at `crf` and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(path, clip.frames, clip.audio, crf=crf)
        frames, audio = read_video(path)[: len(clip.frames)], read_audio(path)
    return frames, np.pad(audio, (0, max(0, len(clip.audio) - len(audio))))[: len(clip.audio)]
