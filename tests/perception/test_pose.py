"""DWPose's arithmetic around its two networks: planted people and points come back where they were planted."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from perception.onnx_nets import OnnxError
from perception.pose import (
    DETECTOR_FILE,
    LEFT_HAND,
    POSE_FILE,
    RIGHT_HAND,
    Pose,
    decode_boxes,
    decode_simcc,
    letterbox,
    load_pose_estimator,
    person_window,
)
from tests.perception.small_networks import write_constant, write_network

CELLS = 8 * 8 + 4 * 4 + 2 * 2  # of 64 px at strides 8, 16, 32
BINS_X, BINS_Y = 2 * 36, 2 * 48


def raw_rows(*people: tuple[int, tuple[float, float, float, float], float]) -> np.ndarray:
    """YOLOX rows (84, 5 + 2): (row, (shift x, shift y, log width, log height), surety) of each person."""
    rows = np.zeros((CELLS, 7), np.float32)
    for row, place, surety in people:
        rows[row] = (*place, surety, 1, 0)
    return rows


def curves() -> tuple[np.ndarray, np.ndarray]:
    """Points i: x bin i mod 72, y bin 95 - i mod 96, heights 0.9 and 0.5 + i / 1000."""
    along_x, along_y = np.zeros((133, BINS_X), np.float32), np.zeros((133, BINS_Y), np.float32)
    point = np.arange(133)
    along_x[point, point % BINS_X] = 0.9
    along_y[point, 95 - point % BINS_Y] = 0.5 + point / 1000
    return along_x, along_y


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A person of 32 x 32 px at (16, 16) of the detector's 64 px, whatever the picture."""
    log4 = float(np.log(4))
    rows = raw_rows((4 * 8 + 4, (0, 0, log4, log4), 0.9), (3 * 8 + 4, (0, 0.5, log4, log4), 0.6))
    write_constant(tmp_path / DETECTOR_FILE, [1, 3, 64, 64], {"output": rows[None]})
    along_x, along_y = curves()
    answers = {"simcc_x": along_x[None], "simcc_y": along_y[None]}
    write_constant(tmp_path / POSE_FILE, [1, 3, 48, 36], answers)
    return tmp_path


def test_a_picture_is_fitted_into_the_upper_left() -> None:
    fitted, scale = letterbox(np.full((30, 60, 3), 7, np.uint8), 64, 64)
    assert scale == pytest.approx(64 / 60) and fitted.shape == (64, 64, 3)
    assert (fitted[:32] == 7).all() and (fitted[32:] == 114).all()


def test_boxes_come_from_cell_stride_and_scale() -> None:
    rows = raw_rows(
        (3 * 8 + 2, (0.5, 0.25, np.log(2), np.log(3)), 0.9),  # stride 8, column 2, row 3
        (64 + 1 * 4 + 3, (0, 0, 0, np.log(2)), 0.8),  # stride 16, column 3, row 1
        (64 + 16 + 3, (0.5, 0.5, 0, 0), 0.7),  # stride 32, column 1, row 1
    )
    boxes, scores = decode_boxes(rows, 64, 64, 0.5)
    centres = np.array([[20, 26], [48, 16], [48, 48]]) / 0.5
    sizes = np.array([[16, 24], [16, 32], [32, 32]]) / 0.5
    assert boxes == pytest.approx(np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1), abs=1e-4)
    assert scores == pytest.approx([0.9, 0.8, 0.7])


def test_only_sure_people_that_do_not_overlap_are_kept() -> None:
    log2 = np.log(2)
    rows = raw_rows(
        (9, (0, 0, log2, log2), 0.6),
        (9 + 8, (0, -0.8, log2, log2), 0.8),  # covers the one above: 16 * 14.4 of 16 * 17.6
        (30, (0, 0, log2, log2), 0.3),  # not above 0.3
        (40, (0, 0, log2, log2), 0.5),
    )
    rows[50] = (0, 0, log2, log2, 0.9, 0, 1)  # no person
    boxes, scores = decode_boxes(rows, 64, 64, 1)
    assert scores == pytest.approx([0.8, 0.5]) and boxes.shape == (2, 4)
    empty, none = decode_boxes(raw_rows(), 64, 64, 1)
    assert empty.shape == (0, 4) and none.shape == (0,)


def test_the_window_is_a_quarter_larger_and_takes_the_aspect() -> None:
    corner, size = person_window(np.array([100, 100, 200, 300]), 0.75)
    assert size == pytest.approx([187.5, 250]) and corner == pytest.approx([56.25, 75])
    corner, size = person_window(np.array([0, 0, 300, 100]), 0.75)
    assert size == pytest.approx([375, 500]) and corner == pytest.approx([-37.5, -200])


def test_the_highest_bins_are_the_point_and_the_lower_height_its_score() -> None:
    points, scores = decode_simcc(*curves())
    assert points[10] == pytest.approx([5, 42.5]) and points[80] == pytest.approx([4, 7.5])
    assert scores[[0, 132]] == pytest.approx([0.5, 0.632])


def test_planted_points_come_back_in_the_picture(folder: Path) -> None:
    (pose,) = load_pose_estimator(folder).estimate(np.zeros((128, 96, 3), np.uint8))
    # The picture is halved to fit 64 px, so the box is twice as large in it; the weaker one overlaps it.
    assert pose.box == pytest.approx([32, 32, 96, 96]) and pose.score == pytest.approx(0.9)
    # 64 px and a quarter: 80 wide, so 106.7 high; 36 px of the network are 80.
    corner, scale = np.array([64 - 40, 64 - 80 * 4 / 6]), 80 / 36
    assert pose.points[10] == pytest.approx(corner + scale * np.array([5, 42.5]), abs=1e-3)
    assert pose.points.shape == (133, 2) and pose.scores[132] == pytest.approx(0.632)
    assert pose.points[LEFT_HAND].shape == pose.points[RIGHT_HAND].shape == (21, 2)


def write_brightest(path: Path) -> None:
    """A pose network that points at the brightest column and row of one colour: point 0 red, 1 green, 2 blue."""
    pad = {"wider": np.array([0, 0, 0, 0, 130, 0], np.int64)}
    nodes = []
    for name, axis, side in (("x", 2, 36), ("y", 3, 48)):
        nodes += [
            helper.make_node("ReduceMax", ["picture"], [f"{name}3"], axes=[axis], keepdims=0),
            helper.make_node("Unsqueeze", [f"{name}3", "last"], [f"{name}4"]),
            helper.make_node("Concat", [f"{name}4", f"{name}4"], [f"{name}5"], axis=3),
            helper.make_node("Reshape", [f"{name}5", f"shape {name}"], [f"{name}6"]),
            helper.make_node("Pad", [f"{name}6", "wider"], [f"simcc_{name}"]),
        ]
        pad[f"shape {name}"] = np.array([1, 3, 2 * side], np.int64)
    constants = pad | {"last": np.array([3], np.int64)}
    write_network(
        path, nodes, constants, {"picture": [1, 3, 48, 36]}, {"simcc_x": [1, 133, 72], "simcc_y": [1, 133, 96]}
    )


def test_the_pose_network_sees_the_person_in_rgb(folder: Path) -> None:
    write_brightest(folder / POSE_FILE)
    frame = np.zeros((128, 96, 3), np.uint8)
    planted = {0: (40, 50), 1: (70, 60), 2: (55, 100)}
    for channel, (x, y) in planted.items():
        frame[y - 2 : y + 3, x - 2 : x + 3, channel] = 255
    (pose,) = load_pose_estimator(folder).estimate(frame)
    for channel, place in planted.items():
        assert pose.points[channel] == pytest.approx(place, abs=80 / 36 + 2.5)
        assert pose.scores[channel] == pytest.approx((255 - (123.675, 116.28, 103.53)[channel]) / 58, rel=0.05)


def test_nobody_is_no_pose(folder: Path) -> None:
    write_constant(folder / DETECTOR_FILE, [1, 3, 64, 64], {"output": raw_rows()[None]})
    found: list[Pose] = load_pose_estimator(folder).estimate(np.zeros((50, 50, 3), np.uint8))
    assert found == []


def test_files_that_are_not_dwpose_are_refused(folder: Path) -> None:
    write_constant(
        folder / POSE_FILE, [1, 3, 48, 36], {"simcc_x": np.zeros((1, 17, 72)), "simcc_y": np.zeros((1, 17, 96))}
    )
    with pytest.raises(OnnxError, match=r"dw-ll_ucoco_384.onnx gives \(1, 17, 72\)"):
        load_pose_estimator(folder)
    write_constant(folder / DETECTOR_FILE, [1, 3, 64, 64], {"boxes": np.zeros((1, 100, 5))})
    write_constant(folder / POSE_FILE, [1, 3, 48, 36], {"x": np.zeros((1, 133, 72)), "y": np.zeros((1, 133, 96))})
    with pytest.raises(OnnxError, match=r"yolox_l.onnx gives 100 rows where its input has 84 cells"):
        load_pose_estimator(folder)
    (folder / DETECTOR_FILE).unlink()
    with pytest.raises(OnnxError, match=r"yolox_l.onnx does not exist"):
        load_pose_estimator(folder)
