"""Who counts as a person in a clip, from boxes given."""

import pytest

from curation.config import PeopleConfig
from curation.stages.shots import Piece
from curation.stages.tracks import annotated_distances, find_tracks, people_fields
from perception.faces.tracks import Track

LEFT, RIGHT = [10.0, 10.0, 30.0, 34.0], [60.0, 10.0, 76.0, 26.0]


def tracks_of(clip: dict, config: PeopleConfig) -> list[Track]:
    return find_tracks(config, Piece(clip, clip["faces"]))  # type: ignore[arg-type]


def row(boxes_of, looks: int = 15) -> dict:
    faces = [(round(0.2 * look, 4), boxes_of(look)) for look in range(looks)]
    return {"duration": looks / 5, "width": 100, "height": 50, "faces": faces}


def test_one_face_seen_all_the_time() -> None:
    clip = row(lambda look: [LEFT])
    (track,) = tracks_of(clip, PeopleConfig())
    assert (track.start_frame, track.stop_frame) == (0, 75)  # held to the end, four frames after the last look
    assert people_fields([track], clip) == {
        "n_faces_median": 1.0, "face_track_id": 0, "face_px": 24.0, "face_area_pct": pytest.approx(9.6),
        "xy_agreement": None,
    }  # fmt: skip


def test_two_faces_and_the_one_that_speaks() -> None:
    clip = row(lambda look: [LEFT, RIGHT])
    tracks = tracks_of(clip, PeopleConfig())
    speaker = next(number for number, track in enumerate(tracks) if track.boxes[0, 0] == 60)
    fields = people_fields(tracks, clip, speaker)
    assert fields["n_faces_median"] == 2 and fields["face_track_id"] == speaker and fields["face_px"] == 16


def test_a_face_that_is_missed_now_and_then_stays_one_person() -> None:
    clip = row(lambda look: [] if look % 3 == 1 else [LEFT])
    assert people_fields(tracks_of(clip, PeopleConfig()), clip)["n_faces_median"] == 1


def test_a_pattern_that_passes_for_a_face_now_and_then_is_nobody() -> None:
    clip = row(lambda look: [LEFT, RIGHT] if look % 3 == 0 else [LEFT])
    assert people_fields(tracks_of(clip, PeopleConfig()), clip)["n_faces_median"] == 1


def test_somebody_who_only_passes_by_does_not_count() -> None:
    clip = row(lambda look: [LEFT, RIGHT] if look < 5 else [LEFT])
    assert len(tracks_of(clip, PeopleConfig(max_gap=0.4))) == 1
    assert len(tracks_of(clip, PeopleConfig(max_gap=0.4, min_share=0.25))) == 2


def test_nobody() -> None:
    clip = row(lambda look: [])
    assert people_fields(tracks_of(clip, PeopleConfig()), clip) == {
        "n_faces_median": 0.0, "face_track_id": None, "face_px": None, "face_area_pct": None,
        "xy_agreement": None,
    }  # fmt: skip


def test_distance_from_the_annotated_point_in_closed_form() -> None:
    clip = row(lambda look: [LEFT, RIGHT]) | {"x": 0.2, "y": 0.74}
    tracks = tracks_of(clip, PeopleConfig())
    near = next(number for number, track in enumerate(tracks) if track.boxes[0, 0] == 10)
    distances = annotated_distances(tracks, clip)  # LEFT is centred at (0.2, 0.44), RIGHT at (0.68, 0.36)
    assert distances is not None
    assert distances[near] == pytest.approx(0.3) and distances[1 - near] == pytest.approx(0.6122, abs=1e-3)
    assert people_fields(tracks, clip, near)["xy_agreement"] == distances[near]


def test_the_point_holds_at_its_own_moment() -> None:
    clip = row(lambda look: [[side + 2.0 * look for side in LEFT]]) | {"x": 0.4, "y": 0.84}
    (track,) = tracks_of(clip, PeopleConfig(min_overlap=0.3))
    assert annotated_distances([track], clip | {"point_at": 2.0}) == [pytest.approx(0.0)]
    assert annotated_distances([track], clip)[0] > 0.4 and annotated_distances([track], clip | {"x": None}) is None
    assert annotated_distances([], clip) is None  # a point is no face
