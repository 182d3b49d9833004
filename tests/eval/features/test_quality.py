"""IQA falls with planted blur and noise, on held-out faces."""

import cv2
import numpy as np
import pytest

from eval.features.extractors import one_frame_per_second, quality_of_clip
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from perception.quality.qalign import QAlign, load_qalign


@pytest.fixture(scope="module")
def scorer() -> QAlign:
    return load_qalign(model_paths()["quality_scorer"])


@pytest.mark.parametrize("seed", [HELD_OUT_SEED + 11, HELD_OUT_SEED + 12])
def test_blurred_and_noisy_clips_score_lower(scorer: QAlign, seed: int) -> None:
    frames = draw_clip(seed, 1.1).frames
    noise = np.random.default_rng(seed).normal(0, 30, frames.shape)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in frames])
    noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
    clean, *spoilt = (quality_of_clip(scorer, version) for version in (frames, blurred, noisy))
    assert all(1 <= float(score[name]) <= 5 for score in (clean, *spoilt) for name in ("iqa", "ase"))
    assert all(float(score["iqa"]) < float(clean["iqa"]) - 1 for score in spoilt)
    assert int(clean["frames"]) == 1


def test_the_score_is_the_mean_over_one_frame_per_second(scorer: QAlign) -> None:
    frames = draw_clip(HELD_OUT_SEED + 13, 2.1).frames
    single = [float(quality_of_clip(scorer, frames[i : i + 1])["iqa"]) for i in (0, 25)]
    assert float(quality_of_clip(scorer, frames)["iqa"]) == pytest.approx(np.mean(single), abs=1e-5)


@pytest.mark.parametrize("fps", [25.0, 29.97, 24.0])
def test_frames_are_taken_as_the_official_loader_takes_them(fps: float) -> None:
    for count in range(25, 200):
        theirs = [int(fps * i) for i in range(int(count / fps))]  # load_video of the released scorer
        assert one_frame_per_second(count, fps) == (theirs or [0])
    assert one_frame_per_second(76) == [0, 25, 50] and one_frame_per_second(75) == [0, 25, 50]
    assert one_frame_per_second(1) == [0]
