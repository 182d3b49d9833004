"""Cosines of known vectors; a frame without a face is neither zero nor forgotten."""

import numpy as np
import pytest

from eval.features.records import UnscorableError
from eval.metrics.likeness import cosines, first_face, likeness

AXIS = np.array([0.0, 2.0])
NONE = [np.nan, np.nan]


def test_equal_orthogonal_and_opposite_embeddings() -> None:
    assert cosines(np.array([[0.0, 3], [1, 0], [0, -1]]), AXIS).tolist() == [1.0, 0.0, -1.0]
    assert np.isnan(cosines(np.array([NONE]), AXIS)[0])


def test_a_frame_without_a_face_counts_against_coverage() -> None:
    found = likeness(np.array([[0.0, 1], NONE, [1, 0], [0, 1]]), AXIS)
    assert (found.mean, found.coverage, found.frames) == (pytest.approx(2 / 3), 0.75, 3)
    assert found.low == pytest.approx(0.1)  # a twentieth of the way from 0 to 1, twice the gap of three values
    with pytest.raises(UnscorableError, match="none of 1 frames"):
        likeness(np.array([NONE]), AXIS)


def test_frame_by_frame_each_is_compared_with_its_own() -> None:
    video, real = np.array([[1.0, 0], [0, 1], NONE]), np.array([[2.0, 0], [0, -1], [1, 0], [1, 0]])
    found = likeness(video, real)
    assert (found.mean, found.frames, found.coverage) == (pytest.approx(0), 2, pytest.approx(2 / 3))


def test_the_first_face_is_the_first_that_is_seen() -> None:
    assert first_face(np.array([NONE, [3.0, 4.0], [1.0, 0.0]])).tolist() == [3.0, 4.0]
    with pytest.raises(UnscorableError, match="reference"):
        first_face(np.array([NONE]))
