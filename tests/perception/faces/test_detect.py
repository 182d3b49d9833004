"""The detector of a pack finds what its network says, in the picture's own pixels; the cascade needs no weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from insightface.data import get_object
from scipy.spatial.transform import Rotation
from skimage import data

from perception.faces.detect import FaceDetectorError, load_face_detector
from tests.drawn_face_pack import write_face_pack
from tests.perception.judged_material import astronaut, judge, rolled, with_face_of
from tests.perception.small_networks import write_constant


def with_squares(height: int, width: int, *corners: tuple[int, int], side: int = 16) -> np.ndarray:
    frame = np.zeros((height, width, 3), np.uint8)
    for x, y in corners:
        frame[y : y + side, x : x + side] = 255
    return frame


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_face_pack(tmp_path_factory.mktemp("pack"))


def test_a_small_picture_is_enlarged_and_boxes_come_back_in_its_pixels(pack: Path) -> None:
    # 64 px become 128: a square of 16 px fills one cell of 32.
    (face,) = load_face_detector(pack).detect(with_squares(64, 64, (16, 32)))
    assert face.box.dtype == np.float32 and face.box == pytest.approx([16, 32, 32, 48])
    assert face.score > 0.99
    assert face.keypoints is not None and face.keypoints[2] == pytest.approx([24, 40])


def test_every_face_is_found_in_a_wide_picture(pack: Path) -> None:
    found = load_face_detector(pack).detect(with_squares(64, 128, (16, 16), (96, 32)))
    assert sorted(tuple(face.box) for face in found) == [(16, 16, 32, 32), (96, 32, 112, 48)]


def test_a_large_picture_is_reduced(pack: Path) -> None:
    (face,) = load_face_detector(pack).detect(with_squares(1280, 640, (128, 256), side=64))
    assert face.box == pytest.approx([128, 256, 192, 320])


def test_nothing_in_an_empty_picture(pack: Path) -> None:
    assert load_face_detector(pack).detect(np.zeros((64, 64, 3), np.uint8)) == []


def test_loading_is_quiet(pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_face_detector(pack).detect(with_squares(64, 64, (16, 32)))
    assert capfd.readouterr() == ("", "")


def write_landmarks(pack: Path, yaw: float, pitch: float, roll: float) -> Path:
    """1k3d68.onnx that always sees InsightFace's mean face, turned by these angles (degrees), as the last 68 points."""
    turned = Rotation.from_euler("xyz", [pitch, yaw, roll], degrees=True).apply(get_object("meanshape_68.pkl"))
    points = np.zeros((1103, 3))
    points[-68:] = 0.4 * turned
    write_constant(pack / "1k3d68.onnx", ["None", 3, 192, 192], {"fc1": points.reshape(1, -1)})
    return pack


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (0, 20, 0), (0, 0, 15), (-25, 10, -40)])
def test_head_angles_are_yaw_pitch_and_roll(tmp_path: Path, angles: tuple[float, float, float]) -> None:
    pack = write_landmarks(write_face_pack(tmp_path), *angles)
    faces = load_face_detector(pack, angles=True).detect(with_squares(64, 128, (16, 16), (96, 32)))
    assert len(faces) == 2
    for face in faces:
        assert face.angles == pytest.approx(angles, abs=1e-2)


def test_signs_of_the_angles() -> None:
    nose, right_temple = get_object("meanshape_68.pkl")[[30, 16]]
    assert nose[2] > 0.5 and right_temple[0] > 0.5  # towards the camera; right in the picture, where y points down
    assert Rotation.from_euler("y", 30, degrees=True).apply(nose)[0] > nose[0] + 0.2
    assert Rotation.from_euler("x", 30, degrees=True).apply(nose)[1] < nose[1] - 0.2
    assert Rotation.from_euler("z", 30, degrees=True).apply(right_temple)[1] > right_temple[1] + 0.2


def test_angles_are_computed_only_when_asked_for(pack: Path, tmp_path: Path) -> None:
    with_landmarks = write_landmarks(write_face_pack(tmp_path), 10, 0, 0)
    (face,) = load_face_detector(with_landmarks).detect(with_squares(64, 64, (16, 32)))
    assert face.angles is None
    with pytest.raises(FaceDetectorError, match=r"no 3D landmarks; head angles need 1k3d68.onnx"):
        load_face_detector(pack, angles=True)
    found = load_face_detector(None, angles=True).detect(like_a_face(240, 60, 48, 96))
    assert [face.angles for face in found] == [None]


def test_an_empty_or_absent_folder_is_refused_without_a_download(tmp_path: Path) -> None:
    with pytest.raises(FaceDetectorError, match="holds no .onnx file"):
        load_face_detector(tmp_path)
    with pytest.raises(FaceDetectorError, match="buffalo"):
        load_face_detector(tmp_path / "buffalo_l")


def test_a_broken_pack_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "det_10g.onnx").write_bytes(b"not a network")
    with pytest.raises(FaceDetectorError, match=r"det_10g.onnx.*no readable SCRFD detector"):
        load_face_detector(tmp_path)


def like_a_face(side: int, x: int, y: int, size: int) -> np.ndarray:
    """Bright skin, dark brows and eyes, nose shadow and mouth: what the cascade's rectangles ask for."""
    frame = np.full((side, side, 3), 90, np.uint8)

    def at(u: float, v: float) -> tuple[int, int]:
        return round(x + u * size), round(y + v * size)

    cv2.ellipse(frame, at(0.5, 0.5), (round(0.42 * size), round(0.58 * size)), 0, 0, 360, (205, 205, 205), -1)
    for u in (0.3, 0.7):
        cv2.ellipse(frame, at(u, 0.33), (round(0.13 * size), round(0.07 * size)), 0, 0, 360, (60, 60, 60), -1)
        cv2.ellipse(frame, at(u, 0.24), (round(0.15 * size), round(0.03 * size)), 0, 0, 360, (90, 90, 90), -1)
    cv2.ellipse(frame, at(0.5, 0.6), (round(0.08 * size), round(0.03 * size)), 0, 0, 360, (130, 130, 130), -1)
    cv2.ellipse(frame, at(0.5, 0.8), (round(0.17 * size), round(0.05 * size)), 0, 0, 360, (100, 80, 80), -1)
    return cv2.GaussianBlur(frame, (0, 0), size / 40)


@pytest.mark.parametrize("side", [240, 640])
def test_the_cascade_finds_a_face_in_any_size_of_picture(side: int) -> None:
    size = side * 4 // 10
    x, y = side // 4, side // 5
    found = load_face_detector(None).detect(like_a_face(side, x, y, size))
    assert len(found) == 1 and found[0].keypoints is None
    centre = (found[0].box[:2] + found[0].box[2:]) / 2
    assert centre == pytest.approx([x + size / 2, y + size / 2], abs=0.15 * size)


def test_the_cascade_finds_nothing_in_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    assert load_face_detector(None).detect(noise) == []


def test_centerface_finds_a_face_upright_rolled_and_small() -> None:
    detector, cascade, portrait = load_face_detector(judge("face_detector")), load_face_detector(None), astronaut()
    (face,) = detector.detect(portrait)
    assert face.box.dtype == np.float32 and face.score > 0.8
    assert face.box == pytest.approx([184, 65, 269, 176], abs=6)  # looked at
    points = face.keypoints
    assert points is not None and ((points > face.box[:2]) & (points < face.box[2:])).all()
    eyes, nose, mouth = points[:2], points[2], points[3:]
    assert eyes[0, 0] < nose[0] < eyes[1, 0] and mouth[0, 0] < mouth[1, 0]
    assert eyes[:, 1].max() < nose[1] < mouth[:, 1].min()
    turned = [rolled(portrait, degrees) for degrees in (-40, -20, 20, 40)]
    assert [len(detector.detect(frame)) for frame in turned] == [1] * 4
    assert not cascade.detect(turned[0]) and not cascade.detect(turned[3])
    for seed in range(4):
        picture, box = with_face_of(portrait, face.box, 40, seed)
        (small,) = detector.detect(picture)
        assert small.box == pytest.approx(box, abs=6)


def test_centerface_finds_none_where_there_is_none() -> None:
    detector = load_face_detector(judge("face_detector"))
    noise = np.random.default_rng(2).integers(0, 256, (120, 300, 3)).astype(np.uint8)
    assert detector.detect(noise) == detector.detect(np.asarray(data.coffee())) == []


def test_a_file_that_is_no_centerface_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(FaceDetectorError, match="x.onnx is not a readable ONNX network.*InsightFace pack"):
        load_face_detector(tmp_path / "x.onnx")
