"""Who counts as a person in a clip, from boxes given."""

import pytest

from curation.people import PeopleConfig, find_tracks, people_fields

LEFT, RIGHT = [10.0, 10.0, 30.0, 34.0], [60.0, 10.0, 76.0, 26.0]


def row(boxes_of, looks: int = 15) -> dict:
    faces = [(round(0.2 * look, 4), boxes_of(look)) for look in range(looks)]
    return {"duration": looks / 5, "width": 100, "height": 50, "faces": faces}


def test_one_face_seen_all_the_time() -> None:
    clip = row(lambda look: [LEFT])
    (track,) = find_tracks(PeopleConfig(), clip)
    assert (track.start_frame, track.stop_frame) == (0, 75)  # held to the end, four frames after the last look
    assert people_fields([track], clip) == {
        "n_faces_median": 1.0, "face_track_id": 0, "face_px": 24.0, "face_area_pct": pytest.approx(9.6),
    }  # fmt: skip


def test_two_faces_and_the_one_that_speaks() -> None:
    clip = row(lambda look: [LEFT, RIGHT])
    tracks = find_tracks(PeopleConfig(), clip)
    speaker = next(number for number, track in enumerate(tracks) if track.boxes[0, 0] == 60)
    fields = people_fields(tracks, clip, speaker)
    assert fields["n_faces_median"] == 2 and fields["face_track_id"] == speaker and fields["face_px"] == 16


def test_a_face_that_is_missed_now_and_then_stays_one_person() -> None:
    clip = row(lambda look: [] if look % 3 == 1 else [LEFT])
    assert people_fields(find_tracks(PeopleConfig(), clip), clip)["n_faces_median"] == 1


def test_a_pattern_that_passes_for_a_face_now_and_then_is_nobody() -> None:
    clip = row(lambda look: [LEFT, RIGHT] if look % 3 == 0 else [LEFT])
    assert people_fields(find_tracks(PeopleConfig(), clip), clip)["n_faces_median"] == 1


def test_somebody_who_only_passes_by_does_not_count() -> None:
    clip = row(lambda look: [LEFT, RIGHT] if look < 5 else [LEFT])
    assert len(find_tracks(PeopleConfig(max_gap=0.4), clip)) == 1
    assert len(find_tracks(PeopleConfig(max_gap=0.4, min_share=0.25), clip)) == 2


def test_nobody() -> None:
    clip = row(lambda look: [])
    assert people_fields(find_tracks(PeopleConfig(), clip), clip) == {
        "n_faces_median": 0.0, "face_track_id": None, "face_px": None, "face_area_pct": None,
    }  # fmt: skip
