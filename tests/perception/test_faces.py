"""The detector of a pack finds what its network says, in the picture's own pixels; the cascade needs no weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from perception.faces import FaceDetectorError, load_face_detector
from tests.drawn_face_pack import write_face_pack


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
