"""Framing from boxes and from planted body points, head angles from planted faces."""

from pathlib import Path

import numpy as np
import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger
from curation.config import FramingConfig
from curation.stages.cut import cut_row
from curation.stages.framing import (
    FramingStage,
    angle_fields,
    body_fields,
    framing_fields,
    framing_judges,
    head_angles,
    owner_of,
)
from curation.stages.tracks import room_below
from miniature.weights import weights_dir
from perception.faces.detect import load_face_detector
from perception.faces.tracks import Track
from perception.pose import DETECTOR_FILE, POINTS, POSE_FILE, Pose
from tests.curation.conftest import FACE, clip_row, draw_talk, with_tracks, write_talk
from tests.drawn_face_pack import write_face_pack
from tests.perception.faces.test_detect import write_landmarks
from tests.perception.small_networks import write_constant

CONFIG = FramingConfig()
SIZE = (640, 480)


def _track(top: float, bottom: float) -> Track:
    return Track(0, np.tile(np.array([300, top, 340, bottom], np.float32), (10, 1)), 10)


@pytest.mark.parametrize(
    ("top", "bottom", "framing"),
    [(40, 320, "head"), (100, 240, "head"), (60, 180, "semi"), (50, 110, "semi"), (10, 55, "full")],
)
def test_framing_by_what_fits_below_the_chin(top: float, bottom: float, framing: str) -> None:
    row = {"face_track_id": 0, "room_below": [room_below(_track(top, bottom), 480)]}
    assert framing_fields(CONFIG, row) == {"framing": framing}


def test_no_face_has_no_framing() -> None:
    assert framing_fields(CONFIG, {"face_track_id": None}) == {"framing": None}


def _body(nose: tuple[float, float] = (320, 80), **joints: tuple[float, float]) -> Pose:
    """A body whose named joints (j9 = left wrist) are sure; all others are not."""
    points, scores = np.zeros((POINTS, 2), np.float32), np.zeros(POINTS, np.float32)
    for number, place in {0: nose, **{int(name[1:]): place for name, place in joints.items()}}.items():
        points[number], scores[number] = place, 0.9
    return Pose(points, scores, np.array([0, 0, 640, 480], np.float32), 0.9)


HIP, ANKLE, WRIST, BELOW = (310, 300), (320, 470), (250, 260), (320, 530)


@pytest.mark.parametrize(
    ("bodies", "framing", "wrists"),
    [
        ([_body(), _body(j11=BELOW)], "head", 0),
        ([_body(j11=HIP, j9=WRIST), _body(j12=HIP)], "semi", 50),
        ([_body(j11=HIP, j16=ANKLE), _body(j11=HIP, j15=ANKLE), None], "full", 0),
        ([_body(j11=HIP, j16=BELOW), None], "semi", 0),
        ([_body(j9=(-4, 100)), _body(j10=WRIST), _body(j9=WRIST, j10=WRIST), None], "head", 50),
    ],
)
def test_framing_by_joints_inside_the_picture(bodies: list[Pose | None], framing: str, wrists: float) -> None:
    assert body_fields(CONFIG, bodies, SIZE) == {"framing": framing, "wrist_visible_pct": wrists}


def test_a_body_belongs_to_the_face_around_its_nose() -> None:
    box = np.array([300.0, 40, 340, 100])
    own, other = _body((320, 80)), _body((500, 80))
    assert owner_of(box, [other, own]) is own
    assert owner_of(box, [other]) is None and owner_of(box, []) is None


@pytest.fixture
def estimator(tmp_path: Path) -> Path:
    """A DWPose folder that sees one person of 38.4 px in the middle of 64, nose in the drawn face, hip and left wrist
    in view."""
    row = np.zeros((8 * 8 + 4 * 4 + 2 * 2, 7), np.float32)
    row[4 * 8 + 4] = (0, 0, np.log(4.8), np.log(4.8), 0.9, 1, 0)
    write_constant(tmp_path / "pose" / DETECTOR_FILE, [1, 3, 64, 64], {"output": row[None]})
    # It looks at 48 x 64 px from (8, 0) on 36 x 48, in half pixels.
    along_x, along_y = np.zeros((POINTS, 72), np.float32), np.zeros((POINTS, 96), np.float32)
    for joint, (x, y) in {0: (24, 40), 11: (30, 60), 9: (10, 60)}.items():
        along_x[joint, round((x - 8) * 1.5)] = along_y[joint, round(y * 1.5)] = 0.9
    answers = {"simcc_x": along_x[None], "simcc_y": along_y[None]}
    write_constant(tmp_path / "pose" / POSE_FILE, [1, 3, 48, 36], answers)
    return tmp_path / "pose"


def test_the_stage_looks_at_the_speaking_face(estimator: Path, tmp_path: Path) -> None:
    pack = write_landmarks(write_face_pack(tmp_path / "pack"), 30, -5, 2)
    talk = draw_talk(4, 3.2)
    row = clip_row(write_talk(tmp_path / "source.mp4", talk), talk) | {"face_track_id": 0}
    cut_row(tmp_path / "clips", row)
    nobody = row | {"unit": "nobody", "face_track_id": None}
    judges = framing_judges({"pose": estimator, "face_detector": pack})
    stage = FramingStage(CONFIG, judges, tmp_path / "clips", tmp_path)
    row, nobody = with_tracks(tmp_path, row), with_tracks(tmp_path, nobody)
    seen, unseen = run_stage(stage, [row, nobody], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    assert (seen.outputs["framing"], seen.outputs["wrist_visible_pct"]) == ("semi", 100)
    for angle, degrees in (("yaw", 30), ("pitch", -5), ("roll", 2)):
        measured = [seen.outputs[f"{angle}_p{percentile}"] for percentile in ("05", "50", "95")]
        assert measured == pytest.approx([degrees] * 3, abs=0.02)
    assert unseen.outputs == {}


def test_another_face_s_angles_are_not_taken(tmp_path: Path) -> None:
    pack = write_landmarks(write_face_pack(tmp_path / "pack"), 30, -5, 2)
    faces, frame = load_face_detector(pack, angles=True), draw_talk(4, 0.1).frames[0]
    assert len(head_angles(np.array(FACE, float), faces, frame)) == 1
    assert head_angles(np.array([48.0, 0, 64, 16]), faces, frame) == [] and angle_fields([]) == {}
    assert head_angles(np.array(FACE, float), faces, np.zeros_like(frame)) == []


def test_percentiles_in_closed_form() -> None:
    fields = angle_fields([(float(yaw), 0.0, -3.0) for yaw in range(101)])
    assert (fields["yaw_p05"], fields["yaw_p50"], fields["yaw_p95"], fields["roll_p50"]) == (5, 50, 95, -3)


def test_what_is_absent_is_not_asked(tmp_path: Path) -> None:
    pack = weights_dir() / "insightface"  # brings no 1k3d68.onnx
    assert framing_judges({"face_detector": pack, "pose": None}) == ()
    (tmp_path / "1k3d68.onnx").touch()
    (tmp_path / "dwpose").mkdir()
    judges = framing_judges({"face_detector": tmp_path, "pose": tmp_path / "dwpose"})
    assert {judge.role: judge.path for judge in judges} == {"face_detector": tmp_path, "pose": tmp_path / "dwpose"}
