"""Faces are aligned as ArcFace was trained, and a random network of its interface gets them as it should."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from insightface.app.common import Face as PackFace
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.utils.face_align import norm_crop
from onnx import helper
from skimage.transform import SimilarityTransform

from perception.faces.align import TEMPLATE, align_face, similarity
from perception.faces.detect import Face
from perception.faces.identity import FaceIdentity, largest_face, load_face_identity
from perception.onnx_nets import OnnxError
from tests.perception.small_networks import write_constant, write_network

RNG = np.random.default_rng(0)


WEIGHT = np.random.default_rng(1).normal(size=(147, 512)).astype(np.float32)


def write_arcface(path: Path, bias: float = 0) -> Path:
    """Averages of 16 px squares through a random matrix: (any, 3, 112, 112) -> (1, 512), as w600k_r50.onnx says."""
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["683"]),
    ]
    constants = {"weight": WEIGHT, "bias": np.float32(bias)}
    return write_network(path, nodes, constants, {"input.1": ["None", 3, 112, 112]}, {"683": [1, 512]})


@pytest.fixture(scope="module")
def arcface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arcface(tmp_path_factory.mktemp("pack") / "w600k_r50.onnx")


def picture(height: int = 200, width: int = 240) -> np.ndarray:
    noise = RNG.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def seen_at(scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """Keypoints of a face that lies exactly so in a picture."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return TEMPLATE @ turn.T + np.array(shift)


@pytest.mark.parametrize(("scale", "degrees", "shift"), [(1, 0, (0, 0)), (0.7, 25, (40, 30)), (1.9, -160, (90, 120))])
def test_a_turned_scaled_and_shifted_template_is_undone(scale: float, degrees: float, shift: tuple) -> None:
    matrix = similarity(seen_at(scale, degrees, shift), TEMPLATE)
    back = seen_at(scale, degrees, shift) @ matrix[:, :2].T + matrix[:, 2]
    assert back == pytest.approx(TEMPLATE, abs=1e-9)
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(1 / scale**2)


def test_the_fit_to_uneven_points_is_skimages() -> None:
    for _ in range(5):
        points = seen_at(1.3, 20, (50, 40)) + RNG.normal(0, 6, (5, 2))
        reference = SimilarityTransform.from_estimate(points, TEMPLATE)
        assert similarity(points, TEMPLATE) == pytest.approx(reference.params[:2], abs=1e-6)


def test_aligned_faces_are_insightfaces() -> None:
    frame, keypoints = picture(), (seen_at(1.2, 12, (60, 40)) + RNG.normal(0, 3, (5, 2))).astype(np.float32)
    expected = norm_crop(frame, keypoints)
    aligned = align_face(frame, keypoints)
    assert aligned.shape == (112, 112, 3) and aligned.dtype == np.uint8
    assert np.abs(aligned.astype(int) - expected).max() <= 1
    away = align_face(frame, keypoints + 500)
    assert (away == 0).all()


def test_embeddings_are_insightfaces_of_the_same_file(arcface: Path) -> None:
    frame, keypoints = picture(), seen_at(1.1, -8, (50, 60)).astype(np.float32)
    face = PackFace(kps=keypoints)
    ArcFaceONNX(str(arcface)).get(np.ascontiguousarray(frame[..., ::-1]), face)
    (ours,) = load_face_identity(arcface).embed(align_face(frame, keypoints)[None])
    assert ours.shape == (512,) and np.linalg.norm(ours) == pytest.approx(1)
    assert ours == pytest.approx(face.embedding / np.linalg.norm(face.embedding), abs=1e-3)


def test_white_is_one_and_black_is_minus_one(tmp_path: Path) -> None:
    net = load_face_identity(write_arcface(tmp_path / "glintr100.onnx", bias=20))
    white, black = net.embed(np.stack([np.full((112, 112, 3), level, np.uint8) for level in (255, 0)]))
    for found, raw in ((white, 20 + WEIGHT.sum(0)), (black, 20 - WEIGHT.sum(0))):
        assert found == pytest.approx(raw / np.linalg.norm(raw), abs=1e-5)


def test_cosines_tell_the_same_from_the_opposite(arcface: Path) -> None:
    net, face = load_face_identity(arcface), picture(112, 112)
    same, again, opposite = net.embed(np.stack([face, face, 255 - face]))
    assert same @ again == pytest.approx(1, abs=1e-6)
    assert same @ opposite == pytest.approx(-1, abs=1e-6)  # 127.5 is the middle
    assert net.embed(np.empty((0, 112, 112, 3), np.uint8)).shape == (0, 512)


class Planted:
    """Sees what it was told to see, frame after frame."""

    def __init__(self, seen: list[list[Face]]) -> None:
        self.seen = iter(seen)

    def detect(self, frame: np.ndarray) -> list[Face]:
        return next(self.seen)


def test_the_largest_face_counts_and_a_frame_without_one_is_no_zero(arcface: Path) -> None:
    net, frame = load_face_identity(arcface), picture()
    large, small = seen_at(1.2, 5, (60, 50)), seen_at(0.5, 0, (10, 10))
    faces = [
        Face(np.array([0, 0, 30, 40], np.float32), 0.99, small),
        Face(np.array([40, 40, 190, 190], np.float32), 0.6, large),
    ]
    bare = Face(np.array([0, 0, 99, 99], np.float32), 0.9, None)
    assert largest_face(faces) is faces[1] and largest_face([]) is None
    rows = net.embed_frames(np.stack([frame] * 3), Planted([faces, [], [bare]]))
    assert rows[0] == pytest.approx(net.embed(align_face(frame, large)[None])[0])
    assert np.isnan(rows[1:]).all() and rows.shape == (3, 512)


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = write_constant(tmp_path / "genderage.onnx", [1, 3, 96, 96], {"fc1": np.zeros((1, 3))})
    with pytest.raises(OnnxError, match=r"takes \(1, 3, 96, 96\); w600k_r50.onnx or glintr100.onnx takes"):
        load_face_identity(path)
    assert isinstance(load_face_identity(write_arcface(tmp_path / "any name.onnx")), FaceIdentity)
