"""Face detection: InsightFace packs, CenterFace, or OpenCV's own cascade when there are no weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import cv2
import numpy as np

from common.errors import UserError
from perception.faces.tracks import overlap
from perception.onnx_nets import OnnxError, one_thread, open_network, unreadable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NESTED = 0.6  # share of a box inside another above which both are one face
MIN_SCORE = 0.5
# Longest side of the image the detectors look at: small images are enlarged, large ones reduced to it.
LARGEST_INPUT = 640
ENLARGEMENT = 2.0
CENTERFACE_SIDE = 384  # px of the longer side: faces of a sixteenth of it are found
CENTERFACE_STRIDE = 4  # px of a cell of its maps
CENTERFACE_APART = 0.3  # overlap above which two boxes are one face
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
    """Anything that finds faces in one image; `name` goes into the clip table as `face_judge`."""

    name: ClassVar[str]

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Faces in an RGB image (H, W, 3) uint8, the surest first."""
        ...


def load_face_detector(path: Path | str | None, angles: bool = False) -> FaceDetector:
    """InsightFace's detector from a folder of ONNX files, CenterFace from its file; OpenCV's frontal-face cascade for
    None.

    `angles` also loads the pack's `1k3d68.onnx` and gives every face its head angles; the others have none to give.
    Raises FaceDetectorError when there is no such face detector (or no landmarks); nothing is ever fetched.
    """
    if path is None:
        return CascadeDetector()
    return CenterFaceDetector(Path(path)) if Path(path).is_file() else PackDetector(Path(path), angles)


class PackDetector:
    """Detection (SCRFD) and, if asked, head angles by an InsightFace pack; it never recognises or describes anybody."""

    name: ClassVar[str] = "insightface"

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


class CenterFaceDetector:
    """CenterFace (Xu et al. 2019; `centerface.onnx`, MIT): faces turned and rolled, of at least a sixteenth of the
    longer side, with keypoints. Boxes reach from the forehead to the chin, as InsightFace's do."""

    name: ClassVar[str] = "centerface"

    def __init__(self, file: Path) -> None:
        maps = [(None, channels, None, None) for channels in (1, 2, 2, 10)]
        try:
            session = open_network(file, "centerface.onnx", [(None, 3, None, None)], maps, any_size=True)
        except OnnxError as error:
            raise FaceDetectorError(
                f"{error} A face detector is that file, or the folder of an InsightFace pack."
            ) from error
        self._session: InferenceSession = session
        self._input = session.get_inputs()[0].name

    def detect(self, frame: np.ndarray) -> list[Face]:
        """Faces in an RGB image (H, W, 3) uint8, the surest first."""
        sides = np.array(frame.shape[1::-1])
        scale = min(ENLARGEMENT, CENTERFACE_SIDE / sides.max())
        size = 32 * np.maximum(1, np.ceil(sides * scale / 32)).astype(int)
        image = cv2.resize(frame, size.tolist(), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        pixels = image.transpose(2, 0, 1)[None].astype(np.float32)
        heat, extents, offsets, points = (part[0] for part in self._session.run(None, {self._input: pixels}))
        rows, columns = np.nonzero(heat[0] > MIN_SCORE)
        # Maps are in the order y, x; here it is x, y.
        extent = CENTERFACE_STRIDE * np.exp(extents[::-1, rows, columns]).T
        corner = CENTERFACE_STRIDE * (np.stack([columns, rows]) + offsets[::-1, rows, columns] + 0.5).T - extent / 2
        five = points[:, rows, columns].T.reshape(-1, 5, 2)[..., ::-1] * extent[:, None] + corner[:, None]
        stretch = (sides / size).astype(np.float32)
        boxes = np.concatenate([corner, corner + extent], axis=1) * np.tile(stretch, 2)
        found = zip(boxes.astype(np.float32), heat[0, rows, columns], (five * stretch).astype(np.float32), strict=True)
        return _apart([Face(box, float(score), keypoints) for box, score, keypoints in found])


def _apart(faces: list[Face]) -> list[Face]:
    """Faces, the surest first, less those that overlap a surer one (non-maximum suppression)."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not kept or overlap(face.box[None], np.stack([other.box for other in kept])).max() < CENTERFACE_APART:
            kept.append(face)
    return without_nested(kept)


class CascadeDetector:
    """OpenCV's frontal-face cascade (Viola and Jones 2001; boosted stumps of Lienhart 2003): upright frontal faces of
    at least a sixteenth of the longer side, no keypoints. The longer side of its boxes is 0.8 to 1.1 of the others'."""

    name: ClassVar[str] = "cascade"

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
