"""Jerk of trajectories whose third difference is known."""

import numpy as np
import pytest

from eval.metrics.jerk import fast_share, jerk_spectrum


def test_a_parabola_has_none_and_a_cubic_all_at_rest() -> None:
    t = np.arange(20.0)
    _, none = jerk_spectrum(np.stack([t**2, -(t**2)], axis=-1)[:, None])
    assert none.max() < 1e-18 and fast_share(none * 0, none) == 0
    frequency, power = jerk_spectrum(np.stack([t**3, 0 * t], axis=-1)[:, None])
    assert power[0] == pytest.approx(17 * 36) and power[1:].max() < 1e-15  # the third difference is 6 in 17 frames
    assert frequency[0] == 0 and frequency[-1] < 12.5


def test_its_power_is_that_of_the_frames_and_trembling_is_fast() -> None:
    rng = np.random.default_rng(0)
    track = rng.standard_normal((30, 4, 2))
    frequency, power = jerk_spectrum(track)
    assert power.sum() == pytest.approx(np.square(np.diff(track, n=3, axis=0)).sum() / 4)
    t = np.arange(60) / 25
    slow, fast = (np.sin(2 * np.pi * hz * t)[:, None, None].repeat(2, 2) for hz in (3.0, 12.0))
    assert fast_share(*reversed(jerk_spectrum(slow))) < 0.1 < 0.9 < fast_share(*reversed(jerk_spectrum(fast)))
