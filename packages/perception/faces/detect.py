"""Face detection: InsightFace packs, or OpenCV's own cascade when there are no weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from common.errors import UserError
from perception.onnx_nets import one_thread, unreadable

NESTED = 0.6  # share of a box inside another above which both are one face
MIN_SCORE = 0.5
# Longest side of the image the detectors look at: small images are enlarged, large ones reduced to it.
LARGEST_INPUT = 640
ENLARGEMENT = 2.0
_LANDMARKS = "landmark_3d_68"  # the task of 1k3d68.onnx
CASCADE_FILE = "haarcascade_frontalface_alt2.xml"
CASCADE_SIDES = (128, 320)
CASCADE_STEP = 1.1
CASCADE_NEIGHBOURS = 8  # clothes and hands rarely answer as often as a face does


class FaceDetectorError(UserError, ValueError):
    """A face detector's files are absent or are not a face detector."""


@dataclass(frozen=True)
class Face:
    """One face: `box` (4,) float32 x0, y0, x1, y1 in pixels; `keypoints` (5, 2) float32 pixels (left eye, right eye,
    nose, left and right mouth corner as seen) or None. `score` is 0..1 from a network; a cascade's is on its own scale.
    `angles`, where they were asked for: yaw, pitch and roll in degrees, 0 for a face that looks at the camera; the nose
    towards the right of the image, upwards, and a head turned clockwise as seen are positive.
    """

    box: np.ndarray
    score: float
    keypoints: np.ndarray | None
    angles: tuple[float, float, float] | None = None


class FaceDetector(Protocol):
    """Anything that finds faces in one image."""

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Faces in an RGB image (H, W, 3) uint8, the surest first."""
        ...


def load_face_detector(pack_dir: Path | str | None, angles: bool = False) -> FaceDetector:
    """InsightFace's detector from a folder of ONNX files; OpenCV's frontal-face cascade for None.

    `angles` also loads the pack's `1k3d68.onnx` and gives every face its head angles; the cascade has none to give.
    Raises FaceDetectorError when the folder holds no face detector (or no landmarks); nothing is ever fetched.
    """
    return CascadeDetector() if pack_dir is None else PackDetector(Path(pack_dir), angles)


class PackDetector:
    """Detection (SCRFD) and, if asked, head angles by an InsightFace pack; it never recognises or describes anybody."""

    def __init__(self, folder: Path, angles: bool = False) -> None:
        files = sorted(folder.glob("*.onnx"))
        if not files:
            # FaceAnalysis would try to download a pack of this name.
            raise FaceDetectorError(
                f"The face detector folder {folder} holds no .onnx file; expected an unpacked InsightFace pack such as "
                "buffalo_l (det_10g.onnx directly in the folder)."
            )
        models = _load_pack(folder, ["detection", _LANDMARKS] if angles else ["detection"])
        self._detector: Any = models["detection"]
        self._landmarks: Any = models.get(_LANDMARKS)
        if angles and self._landmarks is None:
            raise FaceDetectorError(
                f"The face detector folder {folder} holds no 3D landmarks; head angles need 1k3d68.onnx of the pack."
            )

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Faces in an RGB image (H, W, 3) uint8, the surest first."""
        height, width = frame.shape[:2]
        scale = min(ENLARGEMENT, LARGEST_INPUT / max(height, width))
        size = tuple(32 * max(1, int(np.ceil(side * scale / 32))) for side in (width, height))
        bgr = np.ascontiguousarray(frame[..., ::-1])
        rows, keypoints = self._detector.detect(bgr, input_size=size)
        points = [None] * len(rows) if keypoints is None else [five.astype(np.float32) for five in keypoints]
        faces = [Face(row[:4].astype(np.float32), float(row[4]), five) for row, five in zip(rows, points, strict=True)]
        kept = without_nested(faces)
        return kept if self._landmarks is None else [replace(face, angles=self._angles(bgr, face)) for face in kept]

    def _angles(self, bgr: np.ndarray, face: Face) -> tuple[float, float, float]:
        from insightface.app.common import Face as PackFace

        seen = PackFace(bbox=face.box)
        self._landmarks.get(bgr, seen)
        pitch, yaw, roll = (float(angle) for angle in seen["pose"])
        return yaw, pitch, roll


def without_nested(faces: list[Face]) -> list[Face]:
    """Faces, the surest first, less those that lie mostly inside a surer one: no face is part of another face.

    Non-maximum suppression compares by union and so leaves a small box inside a large one.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(_share_inside(face.box, other.box) > NESTED for other in kept):
            kept.append(face)
    return kept


def _share_inside(box: np.ndarray, other: np.ndarray) -> float:
    """Share of the smaller box's area that both boxes cover."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    areas = [float(np.prod(each[2:] - each[:2])) for each in (box, other)]
    return float(np.prod(np.clip(high - low, 0, None))) / max(min(areas), 1e-6)


def _load_pack(folder: Path, modules: list[str]) -> dict[str, Any]:
    """Models of a pack by task, on one CPU thread or whatever accelerator onnxruntime was built for."""
    from insightface.app import FaceAnalysis

    unusable: tuple[type[Exception], ...] = (AssertionError, ValueError, *unreadable())
    try:
        analysis = FaceAnalysis(name=str(folder), allowed_modules=modules, sess_options=one_thread())
    except unusable as error:
        found = ", ".join(file.name for file in sorted(folder.glob("*.onnx")))
        raise FaceDetectorError(
            f"The face detector folder {folder} ({found}) holds no readable SCRFD detector; expected an InsightFace "
            "pack whose detector has 6, 9, 10 or 15 outputs."
        ) from error
    analysis.prepare(ctx_id=0, det_thresh=MIN_SCORE, det_size=(LARGEST_INPUT, LARGEST_INPUT))
    return analysis.models


class CascadeDetector:
    """OpenCV's frontal-face cascade (Viola and Jones 2001; boosted stumps of Lienhart 2003): upright frontal faces of
    at least a sixteenth of the longer side, no keypoints."""

    def __init__(self) -> None:
        path = Path(cv2.__file__).parent / "data" / CASCADE_FILE
        if not path.is_file():
            raise FaceDetectorError(f"OpenCV {cv2.__version__} ships no {CASCADE_FILE}; install opencv-python 4.x.")
        self._cascade = cv2.CascadeClassifier(str(path))

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Faces in an RGB image (H, W, 3) uint8, the surest first."""
        longest = max(frame.shape[:2])
        scale = float(np.clip(longest, *CASCADE_SIDES)) / longest
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
        boxes, _, sums = self._cascade.detectMultiScale3(
            grey, CASCADE_STEP, CASCADE_NEIGHBOURS, outputRejectLevels=True
        )
        found = [
            Face(np.array([x, y, x + w, y + h], np.float32) / np.float32(scale), float(surety), None)
            for (x, y, w, h), surety in zip(boxes, np.ravel(sums), strict=True)
        ]
        return sorted(found, key=lambda face: -face.score)
