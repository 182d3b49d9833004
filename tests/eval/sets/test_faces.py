"""The face of a clip is the one that curation saw to speak; without its boxes, the one that is seen most."""

from pathlib import Path

import numpy as np
import pytest

from common.ledger.store import Ledger, Outcome
from common.media.write import write_video
from common.runs import RunFolder
from curation.config import PeopleConfig
from eval.sets.faces import speaker_boxes, stored_looks
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from perception.faces.detect import FaceDetector, load_face_detector

LEFT, RIGHT = [10.0, 10.0, 30.0, 30.0], [60.0, 10.0, 80.0, 30.0]
CLIP = {"clip_id": "c", "video_id": "v", "t_start": 4.0, "t_end": 6.0, "crop": None, "stage_versions": {"scan": "f1"}}


def no_detector() -> FaceDetector:
    raise AssertionError("boxes are stored, nothing is to be detected")


def record(run: RunFolder, version: str, looks: list, unit: str = "v") -> None:
    """A scan of a source in the ledger of a run."""
    with Ledger(run.ledger).open("scan", version) as log:
        log.lock()
        log.append((unit, "h"), Outcome(unit, "kept", outputs={"cuts": [], "faces": looks, "motion": []}))


def test_looks_are_those_of_the_clips_own_scan_on_its_clock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    looks = [[0.2 * number, [LEFT, RIGHT]] for number in range(50)]
    record(run, "f1", looks)
    record(run, "f2", [[4.4, [RIGHT]]])
    others = [CLIP | {"clip_id": "cropped", "crop": [0, 0, 9, 9]}, CLIP | {"clip_id": "old", "stage_versions": None}]
    found = stored_looks(run, [CLIP, *others, CLIP | {"clip_id": "x", "video_id": "not scanned"}])
    assert list(found) == ["c"] and found["c"][0] == (0.0, [LEFT, RIGHT])
    assert len(found["c"]) == 10 and found["c"][-1][0] == pytest.approx(1.8)
    assert stored_looks(run, [CLIP | {"stage_versions": {"scan": "f2"}}])["c"] == [(0.4, [RIGHT])]


def test_the_speaker_is_the_face_that_curation_chose() -> None:
    looks = [(0.2 * number, [LEFT] if number == 4 else [LEFT, RIGHT]) for number in range(10)]
    clip = {"path": "nowhere", "duration": 2.0, "looks": looks}
    for track, box in ((None, LEFT), (0, LEFT), (1, RIGHT), (7, LEFT)):
        boxes = speaker_boxes(PeopleConfig(), clip | {"face_track_id": track}, no_detector)
        assert boxes is not None and boxes.shape == (50, 4)
        np.testing.assert_allclose(np.median(boxes, axis=0), box)
    assert speaker_boxes(PeopleConfig(), clip | {"looks": [], "face_track_id": 0}, no_detector) is None


def test_without_stored_boxes_the_detector_looks(tmp_path: Path) -> None:
    drawn = draw_clip(HELD_OUT_SEED, 0.6)
    write_video(tmp_path / "c.mp4", drawn.frames, drawn.audio)
    clip = {"path": str(tmp_path / "c.mp4"), "duration": 0.6, "looks": None, "face_track_id": None}
    boxes = speaker_boxes(PeopleConfig(), clip, lambda: load_face_detector(model_paths()["face_detector"]))
    assert boxes is not None and len(boxes) == 15
    assert np.abs(np.median(boxes, axis=0) - np.median(drawn.boxes, axis=0)).max() < 6
