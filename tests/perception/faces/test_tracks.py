"""Tracks of boxes that move by known steps."""

import numpy as np
import pytest

from perception.faces.tracks import overlap, track_faces

NOBODY = np.zeros((0, 4), np.float32)


def box(x: float, y: float = 0.0, side: float = 40.0) -> list[float]:
    return [x, y, x + side, y + side]


def test_overlap_in_closed_form() -> None:
    first = np.array([box(0), box(100)])
    second = np.array([box(0), box(20), box(0, 0, 80), box(60)])
    assert overlap(first, second)[0] == pytest.approx([1, 1 / 3, 1 / 4, 0])
    assert overlap(first, second)[1] == pytest.approx([0, 0, 0, 0])


def test_a_moving_face_is_one_track() -> None:
    (track,) = track_faces([np.array([box(2 * frame)]) for frame in range(30)])
    assert (track.start_frame, track.stop_frame, track.detections) == (0, 30, 30)
    assert track.boxes.dtype == np.float32 and track.boxes[7] == pytest.approx(box(14))
    assert track.size == pytest.approx(40)


def test_frames_that_were_not_looked_at_are_interpolated() -> None:
    frames = [np.array([box(frame)]) if frame % 5 == 0 else NOBODY for frame in range(3, 24)]
    (track,) = track_faces([NOBODY] * 3 + frames)
    assert (track.start_frame, track.stop_frame, track.detections) == (5, 21, 4)
    assert track.boxes[:, 0] == pytest.approx(np.arange(5, 21))


def test_two_people_are_two_tracks_whatever_their_order() -> None:
    frames = [np.array([box(0), box(100)][:: (-1) ** frame]) for frame in range(20)]
    frames[7] = np.array([box(100)])
    seen_most, other = track_faces(frames)
    assert seen_most.boxes[:, 0] == pytest.approx(100) and seen_most.detections == 20
    assert other.boxes[:, 0] == pytest.approx(0) and other.detections == 19


def test_a_jump_begins_a_new_track() -> None:
    frames = [np.array([box(0)])] * 10 + [np.array([box(21)])] * 5  # overlap 19 / 61 is below one half
    assert [(track.start_frame, track.stop_frame) for track in track_faces(frames)] == [(0, 10), (10, 15)]


@pytest.mark.parametrize(("gap", "tracks"), [(25, 1), (26, 2)])
def test_a_gap_of_25_frames_is_bridged_and_no_more(gap: int, tracks: int) -> None:
    frames = [np.array([box(0)])] + [NOBODY] * (gap - 1) + [np.array([box(2)])]
    assert len(track_faces(frames)) == tracks


def test_each_box_joins_one_track_and_the_best_pair_comes_first() -> None:
    # The second box fits both tracks; the first track has a better one of its own.
    frames = [np.array([box(0), box(12)]), np.array([box(1), box(10)])]
    tracks = sorted(track_faces(frames), key=lambda track: track.boxes[0, 0])
    assert [track.boxes[:, 0].tolist() for track in tracks] == [[0, 1], [12, 10]]


def test_rare_detections_are_dropped_on_request() -> None:
    frames = [np.array([box(0), box(200)])] * 2 + [np.array([box(0)])] * 8
    assert len(track_faces(frames, min_detections=3)) == 1
    assert track_faces([NOBODY] * 5) == []
