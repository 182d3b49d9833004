"""Loudness against the figures of ITU-R BS.1770-4, silence in closed form."""

import numpy as np
import pytest

from perception.speech.loudness import integrated_loudness, k_weighting, silent_ends


def _tone(seconds: float, level: float, rate: int = 16_000, frequency: float = 997.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_filters_at_48_khz_are_those_of_the_standard() -> None:
    (shelf, shelf_poles), (high, high_poles) = k_weighting(48_000)
    np.testing.assert_allclose(shelf, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-9)
    np.testing.assert_allclose(shelf_poles, [1, -1.69065929318241, 0.73248077421585], atol=1e-9)
    np.testing.assert_allclose(high, [1, -2, 1])
    np.testing.assert_allclose(high_poles, [1, -1.99004745483398, 0.99007225036621], atol=1e-9)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_full_scale_tone_of_997_hz_has_minus_3_01(rate: int) -> None:
    assert integrated_loudness(_tone(3, 1.0, rate), rate) == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(_tone(3, 0.1, rate), rate) == pytest.approx(-23.01, abs=0.05)


def test_pauses_do_not_count() -> None:
    with_pauses = np.concatenate([_tone(3, 0.1), np.zeros(48_000), _tone(3, 0.1)]).astype(np.float32)
    assert integrated_loudness(with_pauses) == pytest.approx(-23.01, abs=0.6)
    assert integrated_loudness(np.zeros(16_000, np.float32)) is None
    assert integrated_loudness(_tone(0.3, 1.0)) is None


def test_silent_ends_in_closed_form() -> None:
    wave = np.concatenate([np.zeros(8_000), _tone(1, 0.2), np.zeros(4_800), _tone(1, 0.2), np.zeros(16_000)])
    assert silent_ends(wave) == pytest.approx((0.5, 1.0), abs=0.02)
    assert silent_ends(np.zeros(16_000)) == (1.0, 1.0) and silent_ends(np.zeros(0)) == (0.0, 0.0)
    assert silent_ends(_tone(1, 0.2)) == (0.0, 0.0)
