"""Whole-body pose by DWPose (Yang et al. 2023): YOLOX finds people, RTMPose 133 points of each.

A folder holds the published `yolox_l.onnx` (640 px) and `dw-ll_ucoco_384.onnx` (288 x 384 px). Points are those of COCO
WholeBody: 0-16 body, 17-22 feet, 23-90 face, 91-111 left and 112-132 right hand. OpenPose-like tools put a neck at 17
and move all after it by one; here nothing is moved.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from perception.onnx_nets import OnnxError, open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

POINTS = 133
LEFT_HAND, RIGHT_HAND = slice(91, 112), slice(112, 133)
DETECTOR_FILE, POSE_FILE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"
DETECTOR_SIZE, POSE_SIZE = (640, 640), (384, 288)  # height, width

_STRIDES = (8, 16, 32)
_LETTERBOX = 114  # grey beside an image of another aspect
_MIN_SCORE, _MAX_OVERLAP = 0.3, 0.45
_MARGIN = 1.25  # of the person's box, before it takes the network's aspect
_BINS = 2  # SimCC places per pixel
# RGB, as in RTMPose's training; YOLOX takes BGR 0..255 as it is.
_MEAN = np.array((123.675, 116.28, 103.53), np.float32)
_STD = np.array((58.395, 57.12, 57.375), np.float32)


@dataclass(frozen=True)
class Pose:
    """One person: `points` (133, 2) float32 px of the image, `scores` (133,) the surety of each (about 0..1, a sure
    point can exceed 1), `box` (4,) float32 x0, y0, x1, y1 px and its `score`."""

    points: np.ndarray
    scores: np.ndarray
    box: np.ndarray
    score: float


class PoseEstimator:
    """Two networks, one after the other."""

    def __init__(self, detector: "InferenceSession", pose: "InferenceSession") -> None:
        self._detector, self._pose = detector, pose
        self.detector_size, self.pose_size = _size(detector, DETECTOR_SIZE), _size(pose, POSE_SIZE)

    def estimate(self, frame: np.ndarray) -> list[Pose]:
        """People in an RGB image (H, W, 3) uint8, the surest first; empty where nobody is seen."""
        boxes, scores = self._people(frame)
        return [Pose(*self._points(frame, box), box, float(s)) for box, s in zip(boxes, scores, strict=True)]

    def _people(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, scale = letterbox(frame[..., ::-1], *self.detector_size)
        return decode_boxes(_run(self._detector, image)[0], *self.detector_size, scale)

    def _points(self, frame: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.pose_size
        corner, size = person_window(box, width / height)
        scale = width / size[0]
        shift = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
        person = (cv2.warpAffine(frame, shift, (width, height)) - _MEAN) / _STD
        points, scores = decode_simcc(*_run(self._pose, person))
        return (points / scale + corner).astype(np.float32), scores


def _size(session: "InferenceSession", published: tuple[int, int]) -> tuple[int, int]:
    """(height, width) a network takes; the published one where the file leaves it open."""
    height, width = session.get_inputs()[0].shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else published


def _run(session: "InferenceSession", image: np.ndarray) -> list[np.ndarray]:
    """Outputs, without their batch dimension, for one image (height, width, 3)."""
    batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    return [output[0] for output in session.run(None, {session.get_inputs()[0].name: batch})]


def letterbox(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """Fit an image (H, W, 3) into the upper left of (height, width, 3), grey beside it; and the scale it was given."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = int(image.shape[1] * scale), int(image.shape[0] * scale)
    canvas = np.full((height, width, 3), _LETTERBOX, np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(np.ascontiguousarray(image), size)
    return canvas, scale


def decode_boxes(raw: np.ndarray, height: int, width: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """People in YOLOX's raw output (cells, 5 + classes) -> boxes (n, 4) px and scores (n,), the surest first.

    A row holds centre and log size in strides from its cell, the surety of an object and of each class, persons first.
    Source: Ge et al. 2021.
    """
    cell, stride = _cells(height, width)
    scores = raw[:, 4] * raw[:, 5]
    sure = np.flatnonzero(scores > _MIN_SCORE)
    centre = ((raw[:, :2] + cell) * stride)[sure]
    size = np.exp(raw[sure, 2:4]) * stride[sure]
    corner_size = np.concatenate([centre - size / 2, size], axis=1) / scale
    kept = np.asarray(cv2.dnn.NMSBoxes(corner_size.tolist(), scores[sure].tolist(), _MIN_SCORE, _MAX_OVERLAP), np.intp)
    boxes = np.concatenate([corner_size[:, :2], corner_size[:, :2] + corner_size[:, 2:]], axis=1)
    return boxes[kept].astype(np.float32), scores[sure][kept]


def person_window(box: np.ndarray, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corner and size (width, height) px of what the pose network looks at: the box, a quarter larger, one
    side extended to `aspect` (width by height)."""
    size = (box[2:] - box[:2]).astype(np.float64) * _MARGIN
    size = np.array([max(size[0], size[1] * aspect), max(size[1], size[0] / aspect)])
    return (box[:2] + box[2:]) / 2 - size / 2, size


def decode_simcc(along_x: np.ndarray, along_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) in pixels of the network's input and scores (n,) from the two curves (n, bins) of each point.

    The place is the highest bin of each; the score is the lower of both heights, as in mmpose and DWPose (rtmlib takes
    their mean). SimCC: Li et al. 2022.
    """
    places = np.stack([along_x.argmax(axis=1), along_y.argmax(axis=1)], axis=1) / _BINS
    return places, np.minimum(along_x.max(axis=1), along_y.max(axis=1))


def load_pose_estimator(folder: Path | str) -> PoseEstimator:
    """Both networks from `folder`. OnnxError when a file is absent, unreadable or has other inputs and outputs."""
    folder = Path(folder)
    anything = (None, 3, None, None)
    detector = open_network(folder / DETECTOR_FILE, DETECTOR_FILE, [anything], [(None, None, None)])
    pose = open_network(folder / POSE_FILE, POSE_FILE, [anything], [(None, POINTS, None)] * 2)
    estimator = PoseEstimator(detector, pose)
    rows, cells = detector.get_outputs()[0].shape[1], len(_cells(*estimator.detector_size)[0])
    if isinstance(rows, int) and rows != cells:
        raise OnnxError(
            f"{folder / DETECTOR_FILE} gives {rows} rows where its input has {cells} cells; take the file without a "
            "suppression of its own."
        )
    return estimator


def _cells(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row (n, 2) of every cell, by stride 8, 16, 32 and row by row, and its stride (n, 1) in pixels."""
    grids = [np.indices((height // s, width // s)).reshape(2, -1)[::-1].T for s in _STRIDES]
    strides = [np.full((len(grid), 1), s) for grid, s in zip(grids, _STRIDES, strict=True)]
    return np.concatenate(grids), np.concatenate(strides)
