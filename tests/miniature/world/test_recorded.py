"""A recorded clip is the drawn one, slightly worse and not displaced."""

import numpy as np

from miniature.world.clips import draw_clip
from miniature.world.recorded import record


def test_a_file_keeps_length_and_timing() -> None:
    clip = draw_clip(3, 1.0)
    frames, audio = record(clip, crf=20)
    assert frames.shape == clip.frames.shape
    assert audio.shape == clip.audio.shape
    error = np.abs(frames.astype(int) - clip.frames).mean()
    assert 0 < error < 12
    lags = range(-40, 41)
    likeness = [np.dot(np.roll(audio, -lag), clip.audio) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 1
