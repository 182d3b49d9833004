"""Planted slopes of colour and likeness come back as they were planted."""

import cv2
import numpy as np
import pytest

from eval.features.records import UnscorableError
from eval.metrics.drift import (
    ColourDrift,
    background_mask,
    colour_curve,
    colour_curves,
    colour_difference,
    colour_of,
    identity_drift,
    judge_colours,
)


def colour_drift(
    frames: np.ndarray, reference: np.ndarray | None = None, mask: np.ndarray | None = None
) -> ColourDrift:
    return judge_colours(colour_curve(frames, mask), None if reference is None else colour_of(reference, mask))


def lab_video(lab: np.ndarray, side: int = 24) -> np.ndarray:
    """Frames (T, side, side, 3) of one CIELAB colour each (T, 3), dithered: means lie between grey levels."""
    rgb = cv2.cvtColor(lab.astype(np.float32)[None], cv2.COLOR_Lab2RGB)[0] * 255
    dither = np.random.default_rng(0).random((len(lab), side, side, 3))
    return np.floor(rgb[:, None, None] + dither).clip(0, 255).astype(np.uint8)


def ramp(seconds: int, start: tuple[float, float, float], per_minute: tuple[float, float, float]) -> np.ndarray:
    minutes = np.arange(25 * seconds) / 1500
    return np.array(start) + minutes[:, None] * np.array(per_minute)


def test_a_linear_ramp_of_lightness_has_its_slope() -> None:
    drift = colour_drift(lab_video(ramp(20, (50, 0, 0), (6, 0, 0))))
    assert drift.lightness == pytest.approx(6, abs=0.15) and drift.total == pytest.approx(6, abs=0.15)
    assert drift.green_red == pytest.approx(0, abs=0.1) and drift.contrast == pytest.approx(0, abs=0.1)
    assert drift.windows == 20


def test_colour_and_saturation_drift_in_their_own_directions() -> None:
    drift = colour_drift(lab_video(ramp(20, (60, 12, 16), (0, 9, 12))))
    assert (drift.green_red, drift.blue_yellow) == pytest.approx((9, 12), abs=0.3)
    assert drift.total == pytest.approx(15, abs=0.3) == drift.saturation  # it moves straight away from grey
    assert drift.lightness == pytest.approx(0, abs=0.15)


def test_one_odd_second_is_no_drift_and_the_end_is_compared_with_the_reference() -> None:
    steady = lab_video(ramp(12, (50, 0, 0), (0, 0, 0)))
    flash = steady.copy()
    flash[100:125] = 255
    assert abs(colour_drift(flash).lightness) < 0.2
    darker = lab_video(np.tile((40.0, 0, 0), (1, 1)))[0]
    expected = colour_difference(np.array([40.0, 0, 0]), np.array([50.0, 0, 0]))
    assert colour_drift(steady, darker).shift == pytest.approx(expected, abs=0.1)
    assert colour_drift(steady).shift < 0.1


def test_only_what_the_mask_shows_is_measured() -> None:
    frames = lab_video(ramp(6, (50, 0, 0), (0, 0, 0)))
    frames[:, :12] = lab_video(ramp(6, (30, 0, 0), (60, 0, 0)))[:, :12]
    below = np.zeros((24, 24), bool)
    below[12:] = True
    assert colour_drift(frames, mask=below).total < 0.5 < 50 < colour_drift(frames, mask=~below).total
    with pytest.raises(UnscorableError, match="no pixel"):
        colour_drift(frames, mask=np.zeros((24, 24), bool))


def test_drift_of_the_background_and_of_the_person_are_separate() -> None:
    steady, drifting = (lab_video(ramp(12, (30, 0, 0), (rate, 0, 0)), 48) for rate in (0, 30))
    box = np.array([[18.0, 12.0, 26.0, 22.0]])
    behind = background_mask(box, 48, 48)
    person = np.zeros((48, 48), bool)
    person[10:22, 17:27] = person[22:, 10:34] = True  # hair to the chin, shoulders three faces apart to the lower edge
    for where, expected in ((~person, 30.0), (person, 0.0)):
        frames = np.where(where[..., None], drifting, steady)
        whole, background = (judge_colours(curve) for curve in colour_curves(frames, [None, behind]))
        assert background.lightness == pytest.approx(expected, abs=0.3)
        assert whole.lightness == pytest.approx(30 * where.mean(), abs=0.3)


def test_the_background_is_what_no_face_or_body_covers() -> None:
    left = background_mask(np.array([[40.0, 20.0, 60.0, 40.0]]), 100, 100)
    assert left[:15].all() and not left[15:40, 35:65].any() and left[15:38, :35].all() and left[15:38, 65:].all()
    assert not left[38:, 10:90].any() and left[38:, :10].all() and left[38:, 90:].all()
    both = background_mask(np.array([[40.0, 20.0, 60.0, 40.0], [60.0, 20.0, 80.0, 40.0]]), 100, 100)
    assert (both <= left).all() and not both[15:38, 65:85].any()
    with pytest.raises(UnscorableError, match="no face is seen"):
        background_mask(np.zeros(0), 100, 100)
    with pytest.raises(UnscorableError, match="people fill the picture"):
        background_mask(np.array([[-5.0, 2.0, 100.0, 95.0]]), 100, 100)


def test_the_difference_of_two_colours_is_that_of_the_published_test_data() -> None:
    # Pairs 1 and 25 of Sharma, Wu and Dalal (2005).
    first = colour_difference(np.array([50.0, 2.6772, -79.7751]), np.array([50.0, 0.0, -82.7485]))
    second = colour_difference(np.array([60.2574, -34.0099, 36.2677]), np.array([60.4626, -34.1751, 39.4387]))
    assert (first, second) == pytest.approx((2.0425, 1.2644), abs=1e-4)


def turning(per_minute: float, seconds: int) -> np.ndarray:
    """Embeddings whose cosine to the first axis falls by `per_minute`."""
    cosine = 1 - per_minute * (np.arange(25 * seconds) // 25) / 60
    return np.stack([cosine, np.sqrt(1 - cosine**2), np.zeros_like(cosine)], axis=1)


def test_a_face_that_turns_into_another_has_its_slope_and_its_time() -> None:
    axis = np.array([1.0, 0, 0])
    drift = identity_drift(turning(0.3, 60), axis)
    assert drift.slope == pytest.approx(-0.3) and drift.change == pytest.approx(-0.3 * 50 / 60)
    assert drift.lowest == pytest.approx(1 - 0.3 * 57 / 60) and drift.seconds_to_loss == 21.0
    assert drift.coverage == 1.0 and drift.windows == 60
    still = identity_drift(turning(0.0, 12))
    assert (still.slope, still.change) == pytest.approx((0, 0), abs=1e-9) and np.isnan(still.seconds_to_loss)


def test_frames_without_a_face_cost_coverage_and_nothing_else() -> None:
    rows = turning(0.3, 60)
    rows[250:500] = np.nan
    drift = identity_drift(rows, np.array([1.0, 0, 0]))
    assert drift.slope == pytest.approx(-0.3) and drift.coverage == pytest.approx(5 / 6) and drift.windows == 50
    with pytest.raises(UnscorableError, match="0 s measured"):
        identity_drift(np.full((100, 3), np.nan))


def test_two_seconds_cannot_drift() -> None:
    with pytest.raises(UnscorableError, match="2 s measured where drift needs 3"):
        colour_drift(np.zeros((50, 4, 4, 3), np.uint8))
