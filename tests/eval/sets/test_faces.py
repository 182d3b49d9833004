"""The face of a clip is the speaker by curation; without its boxes, the face that is detected most."""

from pathlib import Path

import numpy as np
import pytest

from common.media.write import write_video
from common.runs import RunFolder
from common.tracks import TRACKS_FILE, write_tracks
from curation.config import PeopleConfig
from eval.sets.faces import speaker_boxes, stored_boxes
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from perception.faces.detect import FaceDetector, load_face_detector

LEFT, RIGHT = [10.0, 10.0, 30.0, 30.0], [60.0, 10.0, 80.0, 30.0]
CLIP = {"clip_id": "c", "path": "nowhere", "duration": 2.0}


def no_detector() -> FaceDetector:
    raise AssertionError("boxes are stored, nothing is to be detected")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose clip `c` has two faces, of which the right one speaks."""
    rows = [
        {"clip_id": "c", "track_id": 0, "boxes": [LEFT] * 50, "is_speaker": False},
        {"clip_id": "c", "track_id": 1, "boxes": [RIGHT] * 50, "is_speaker": True},
        {"clip_id": "silent", "track_id": 0, "boxes": [LEFT] * 50, "is_speaker": False},
    ]
    write_tracks(tmp_path / TRACKS_FILE, rows)
    return RunFolder(tmp_path)


def test_the_speaker_is_the_face_that_curation_chose(run: RunFolder) -> None:
    tracks = str(run.root / TRACKS_FILE)
    boxes = speaker_boxes(PeopleConfig(), CLIP | {"tracks": tracks}, no_detector)
    assert boxes is not None and boxes.shape == (50, 4)
    np.testing.assert_allclose(np.median(boxes, axis=0), RIGHT)


def test_stored_boxes_are_named_by_their_content(run: RunFolder, tmp_path: Path) -> None:
    silent, other = CLIP | {"clip_id": "silent"}, CLIP | {"clip_id": "not in the run"}
    digests = stored_boxes(run, [CLIP, silent, other])
    assert list(digests) == ["c"]
    write_tracks(run.root / TRACKS_FILE, [{"clip_id": "c", "track_id": 0, "boxes": [LEFT] * 50, "is_speaker": True}])
    assert stored_boxes(run, [CLIP])["c"] != digests["c"]
    assert stored_boxes(RunFolder(tmp_path / "older"), [CLIP]) == {}


def test_without_stored_boxes_faces_are_detected(tmp_path: Path) -> None:
    drawn = draw_clip(HELD_OUT_SEED, 0.6)
    write_video(tmp_path / "c.mp4", drawn.frames, drawn.audio)
    clip = {"path": str(tmp_path / "c.mp4"), "duration": 0.6, "clip_id": "c", "tracks": ""}
    boxes = speaker_boxes(PeopleConfig(), clip, lambda: load_face_detector(model_paths()["face_detector"]))
    assert boxes is not None and len(boxes) == 15
    assert np.abs(np.median(boxes, axis=0) - np.median(drawn.boxes, axis=0)).max() < 6
