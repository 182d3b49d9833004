"""Offsets of thirds and slopes, on distances whose best shifts are planted."""

import numpy as np
import pytest

from curation.stages.drift import measure_drift


def _distances(path: np.ndarray, noise: float = 0.5, seed: int = 0, most: int = 15) -> np.ndarray:
    """Distances (L, 2V+1) with their minimum at offset `path` (L,): 10 elsewhere, 4 there."""
    distances = np.random.default_rng(seed).normal(10, noise, (len(path), 2 * most + 1))
    distances[np.arange(len(path)), most - np.rint(path).astype(int)] -= 6
    return distances


@pytest.mark.parametrize("offset", [-10, -3, 0, 7])
def test_a_constant_offset_is_no_drift(offset: int) -> None:
    drift = measure_drift(_distances(np.full(80, offset)))
    assert drift is not None and drift.thirds == (offset,) * 3 and drift.frames == 0
    assert drift.confidence == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize(("start", "end"), [(-4, 4), (4, -4), (0, 6), (10, 2)])
def test_a_line_is_followed(start: int, end: int) -> None:
    drift = measure_drift(_distances(np.linspace(start, end, 120)))
    assert drift is not None and drift.frames == pytest.approx(end - start, abs=1)
    assert drift.thirds[1] == pytest.approx((start + end) / 2, abs=1.01)
    assert np.sign(drift.thirds[2] - drift.thirds[0]) == np.sign(end - start)
    assert drift.confidence == pytest.approx(6, abs=0.8)


def test_chance_is_not_synchronous_along_any_line() -> None:
    """Every window has its own best shift: each third finds some offset, no line finds them all."""
    paths = [np.random.default_rng(seed).integers(-15, 16, 90) for seed in range(20)]
    found = [measure_drift(_distances(path, seed=seed)) for seed, path in enumerate(paths)]
    assert max(drift.confidence for drift in found if drift) < 2


def test_thirds_off_the_line_are_no_drift() -> None:
    """Half of the windows follow a slope, the last third has an offset of its own: it may be anything but a drift."""
    path = np.concatenate([np.linspace(-4, 2, 80), np.full(40, -9)])
    drift = measure_drift(_distances(path))
    assert drift is not None and drift.frames is None and drift.thirds[2] == -9


def test_sound_beyond_the_ends_is_not_looked_at() -> None:
    distances = _distances(np.zeros(60))
    heard = np.arange(60)[:, None] + np.arange(-15, 16)
    distances[(heard < 0) | (heard >= 60)] = 0  # what zero padding may give
    drift = measure_drift(distances)
    assert drift is not None and drift.thirds == (0, 0, 0) and drift.frames == 0


def test_too_short_to_say() -> None:
    assert measure_drift(_distances(np.zeros(44))) is None
    assert measure_drift(_distances(np.zeros(45))) is not None
