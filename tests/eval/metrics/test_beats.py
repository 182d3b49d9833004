"""Beats that coincide, beats off by a known time, and gestures on the accents of a click track."""

import numpy as np
import pytest

from eval.features.records import UnscorableError
from eval.metrics.beats import alignment_excess, audio_onsets, beat_alignment, motion_beats

CLICKS = np.array([0.5, 1.1, 1.7, 2.6, 3.3, 4.1])


def click_track(seconds: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    wave = 0.001 * rng.normal(size=int(seconds * 16_000))
    for click in CLICKS:
        start = int(click * 16_000)
        wave[start : start + 1600] += 0.5 * rng.normal(size=1600) * np.exp(-np.arange(1600) / 300)
    return wave.astype(np.float32)


def swinging(turns: np.ndarray, frames: int = 125) -> np.ndarray:
    """Places (T, 1, 2) of a hand that stands still for a moment at each of `turns` seconds."""
    nearest = np.abs(np.arange(frames)[:, None] / 25 - turns[None]).min(axis=1)
    speed = 1 - np.exp(-np.square(nearest) / (2 * 0.08**2))
    return np.stack([np.cumsum(speed), np.zeros(frames)], axis=1)[:, None]


def test_beats_that_coincide_score_one_and_off_by_sigma_the_root_of_one_over_e() -> None:
    assert beat_alignment(CLICKS, CLICKS) == 1.0
    assert beat_alignment(CLICKS + 0.1, CLICKS) == pytest.approx(0.606531, abs=1e-6)
    assert beat_alignment(CLICKS[:1], CLICKS) == 1.0  # sound without a gesture costs nothing


def test_clicks_are_found_where_they_are() -> None:
    assert audio_onsets(click_track()) == pytest.approx(CLICKS, abs=0.02)
    assert len(audio_onsets(np.zeros(16_000, np.float32))) == len(audio_onsets(np.zeros(10, np.float32))) == 0


def test_a_hand_that_rests_on_the_clicks_is_aligned_and_one_that_rests_between_is_not() -> None:
    sound = audio_onsets(click_track())
    on, off = (motion_beats([swinging(CLICKS + shift)], [0]) for shift in (0.0, 0.3))
    assert on == pytest.approx(CLICKS, abs=0.06)
    assert beat_alignment(on, sound) > 0.85 and alignment_excess(on, sound, 5.0) > 0.3
    assert beat_alignment(off, sound) < 0.3 and alignment_excess(off, sound, 5.0) < 0.05


def test_jitter_has_beats_everywhere_and_no_excess() -> None:
    jitter = motion_beats([np.random.default_rng(1).normal(size=(500, 3, 2))], [0])
    clicks = np.random.default_rng(2).uniform(0, 20, 40)
    assert beat_alignment(jitter, clicks) > 0.3 and abs(alignment_excess(jitter, clicks, 20.0)) < 0.1


def test_a_second_run_begins_at_its_own_frame() -> None:
    whole, late = (motion_beats([swinging(CLICKS)], [start]) for start in (0, 50))
    assert late - whole == pytest.approx(np.full(len(whole), 2.0))


def test_no_beats_are_no_score() -> None:
    with pytest.raises(UnscorableError, match="0 of motion, 6 of sound"):
        beat_alignment(motion_beats([np.zeros((3, 1, 2))], [0]), CLICKS)
