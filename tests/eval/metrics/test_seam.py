"""A planted jump is found where it is and nowhere else; without one every p is as likely."""

import numpy as np
import pytest
from scipy import stats

from eval.features.records import UnscorableError
from eval.metrics.seam import CLEAR_Z, frame_jumps, jump_scores, seam_jumps


def noisy_video(frames: int, seed: int = 0) -> np.ndarray:
    """Frames of noise around grey 120, whose mean difference of neighbours varies a little."""
    rng = np.random.default_rng(seed)
    return (120 + rng.normal(0, 4, (frames, 16, 16, 3))).astype(np.uint8)


def test_a_jump_of_ten_grey_levels_is_found_at_the_seam_alone() -> None:
    video = noisy_video(200)
    video[90:] += 10
    jumps = frame_jumps(video)
    found = seam_jumps(jumps, [90])
    assert found.z[0] > CLEAR_Z and found.share == 1.0 and found.p <= 0.01
    assert np.flatnonzero(jump_scores(jumps, np.array([89])) > 2 * CLEAR_Z).tolist() == [89]
    assert seam_jumps(jumps, [91]).z[0] < CLEAR_Z  # a frame late, as a stitcher with other cuts would say


def test_the_jump_is_the_mean_difference_of_neighbours() -> None:
    video = np.zeros((3, 2, 2, 3), np.uint8)
    video[1], video[2, 0] = 200, 100
    assert frame_jumps(iter(video)).tolist() == [200.0, 150.0]
    assert frame_jumps(video[:1]).shape == (0,)


def test_a_still_video_has_no_spread_to_divide_by() -> None:
    still = np.zeros(60)
    assert seam_jumps(still, [30]).z[0] == 0.0
    still[29] = 10.0
    assert seam_jumps(still, [30]).z[0] == pytest.approx(100)


def test_without_a_seam_p_is_uniform() -> None:
    rng = np.random.default_rng(1)
    p = [seam_jumps(rng.gamma(4, 1, 120), [30, 60, 90], draws=99, seed=n).p for n in range(120)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_rhythm_of_four_frames_is_no_seam() -> None:
    """Each frame that begins a latent jumps further; one seam in two jumps further still, or none does."""
    rng = np.random.default_rng(4)
    seams = list(range(40, 360, 32))
    quiet, jumping = [], []
    for n in range(60):
        jumps = rng.gamma(16, 0.25, 400)
        jumps[3::4] += 2.0
        quiet.append(seam_jumps(jumps, seams, draws=99, seed=n))
        jumps[[s - 1 for s in seams[::2]]] += 4.0
        jumping.append(seam_jumps(jumps, seams, draws=99, seed=n))
    assert np.mean([found.p <= 0.05 for found in quiet]) > 0.9  # what a plain draw says of it
    assert stats.kstest([found.p_latent for found in quiet], "uniform").pvalue > 0.01
    assert max(found.p_latent for found in jumping) <= 0.05


def test_several_small_jumps_are_surer_together() -> None:
    rng = np.random.default_rng(2)
    jumps = rng.gamma(16, 0.25, 300)
    seams = [40, 80, 120, 160, 200, 240]
    jumps[[s - 1 for s in seams]] += 1.8
    together = seam_jumps(jumps, seams)
    assert together.p <= 0.01 and together.mean_z > 1


def test_seams_are_not_compared_with_each_other() -> None:
    jumps = np.random.default_rng(3).gamma(16, 0.25, 100)
    seams = list(range(40, 60, 2))  # every other frame: their own jumps would make them look usual
    jumps[[s - 1 for s in seams]] += 10
    assert seam_jumps(jumps, seams).z.min() > CLEAR_Z


def test_videos_without_seams_or_with_too_many_are_unscorable() -> None:
    with pytest.raises(UnscorableError, match="one chunk"):
        seam_jumps(np.ones(50), [0, 99])
    with pytest.raises(UnscorableError, match="21 frames for 5 seams"):
        seam_jumps(np.ones(20), [3, 6, 9, 12, 15])
