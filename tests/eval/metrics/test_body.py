"""Hands and bodies whose scores and motion are known."""

from collections.abc import Callable

import numpy as np
import pytest

from eval.features.records import UnscorableError
from eval.metrics.body import body_motion, hand_scores, joint_runs

FPS = 25


def person(frames: int, wrist: Callable[[np.ndarray], np.ndarray] = lambda t: np.zeros((len(t), 2))) -> np.ndarray:
    """Poses (T, 133, 3): shoulders 100 px apart, all else at (0, 50) but wrists and hands, which follow `wrist`, from
    seconds to (T, 2) in shoulder widths."""
    poses = np.zeros((frames, 133, 3))
    poses[..., 1], poses[..., 2] = 50, 0.8
    poses[:, 5, 0], poses[:, 6, 0] = -50, 50
    poses[:, 5:7, 1] = 0
    moved = 100 * wrist(np.arange(frames) / FPS)
    for point in (9, 10, *range(91, 133)):
        poses[:, point, :2] += moved
    return poses


def test_scores_above_one_are_clipped_and_absent_hands_are_not_averaged() -> None:
    poses = person(10)
    poses[:, 91:112, 2] = 1.4
    poses[:, 10, 2] = 0.1  # the right wrist is out of sight
    poses[:, 112:133, 2] = 0.05
    found = hand_scores(poses)
    assert (found.hkc, found.presence, found.frames) == (1.0, 0.5, 10) and np.isnan(found.hkc_all)


def test_a_hand_that_the_real_video_shows_counts_as_zero_in_hkc_all_only() -> None:
    real, poses = person(10), person(10)
    poses[:5, 9, 2] = poses[:, 10, 2] = 0
    real[:, 10, 2] = 0
    found = hand_scores(poses, real)
    assert found.hkc == pytest.approx(0.8) and found.hkc_all == pytest.approx(0.4)
    assert found.presence == 0.25


def test_no_hand_is_no_score_and_nobody_is_no_hand() -> None:
    poses = person(4)
    poses[:, 9:11, 2] = 0
    with pytest.raises(UnscorableError, match="none in 4 frames"):
        hand_scores(poses)
    with pytest.raises(UnscorableError, match="none in 4 frames"):
        hand_scores(np.full((4, 133, 3), np.nan))


def test_hand_variance_is_that_of_the_path_and_does_not_see_place_and_size() -> None:
    poses = person(100, lambda t: np.stack([np.sin(2 * np.pi * t), np.zeros_like(t)], axis=1))  # four whole swings
    assert hand_scores(poses).hkv == pytest.approx(0.5)
    moved = poses * [3, 3, 1] + [70, -20, 0]
    assert hand_scores(moved).hkv == pytest.approx(0.5)
    walking = poses.copy()
    walking[..., 0] += np.arange(100)[:, None]
    assert hand_scores(walking).hkv == pytest.approx(0.5)


def test_the_jerk_of_a_cubic_is_its_third_derivative() -> None:
    found = body_motion(person(50, lambda t: np.stack([t**3, np.zeros_like(t)], axis=1)))
    assert found.jerk == pytest.approx(6 * 2 / 5)  # two of the five points move
    straight = body_motion(person(50, lambda t: np.stack([t, np.zeros_like(t)], axis=1)))
    assert straight.jerk == pytest.approx(0, abs=1e-6) and straight.wrist_path == pytest.approx(1)


def test_amplitude_shows_in_variance_and_path() -> None:
    circle = body_motion(person(200, lambda t: np.stack([np.cos(np.pi * t), np.sin(np.pi * t)], axis=1)))
    assert circle.wrist_path == pytest.approx(np.pi, rel=0.01)
    assert circle.variance == pytest.approx(1.0 * 2 / 5)
    still = body_motion(person(200))
    assert (still.variance, still.jerk, still.wrist_path) == pytest.approx((0, 0, 0), abs=1e-6)


def test_a_gap_ends_a_run_and_leaves_no_jump() -> None:
    poses = person(40, lambda t: np.stack([t, np.zeros_like(t)], axis=1))
    poses[15:20] = np.nan
    runs, starts = joint_runs(poses)
    assert [len(run) for run in runs] == [15, 20] and starts == [0, 20]
    assert body_motion(poses).wrist_path == pytest.approx(1)
    with pytest.raises(UnscorableError, match="7 frames in a row"):
        body_motion(person(6))
