"""Landmarks of one face in one picture: eyes, mouth, lips and the line between them, from five keypoints or a box."""

from dataclasses import dataclass

import cv2
import numpy as np

from audioavatar.config import ReliefConfig
from common.errors import InputError
from perception.faces.detect import Face, FaceDetector

# Where the keypoints lie in the box of a detector that gives none, as shares of its sides (frontal faces).
_USUAL = np.array([(0.30, 0.39), (0.70, 0.39), (0.50, 0.60), (0.35, 0.81), (0.65, 0.81)], np.float32)
_NARROW = 0.88  # of the distance of the corners


@dataclass(frozen=True)
class FaceParts:
    """In px of the picture: `box` (4,), `eyes` (2, 2) and `eye_radius`; `skin` (3,) its usual colour in Lab; masks
    (H, W) of `lips` and of their `dark` line; `line` (P, 2) points between the lips, corner to corner."""

    box: np.ndarray
    eyes: np.ndarray
    eye_radius: float
    skin: np.ndarray
    lips: np.ndarray
    dark: np.ndarray
    line: np.ndarray

    @property
    def mouth_centre(self) -> np.ndarray:
        """(2,) px."""
        return (self.line[0] + self.line[-1]) / 2

    @property
    def mouth_half_width(self) -> float:
        """Half the distance of the corners, px."""
        return float(np.linalg.norm(self.line[-1] - self.line[0])) / 2


def largest_face(image: np.ndarray, detector: FaceDetector) -> Face:
    """The largest face of an RGB image. Raises InputError when there is none."""
    faces = detector.detect(image)
    if not faces:
        raise InputError(
            f"No face was found in the image of {image.shape[1]}x{image.shape[0]} px; give a portrait whose face looks "
            "at the camera and is at least a tenth of its height."
        )
    return max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))


def face_parts(image: np.ndarray, face: Face, config: ReliefConfig) -> FaceParts:
    """Find the parts of a face in an RGB image (H, W, 3) uint8."""
    box = face.box.astype(np.float32)
    points = face.keypoints if face.keypoints is not None else box[:2] + _USUAL * (box[2:] - box[:2])
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    eyes, nose, corners = points[:2], points[2], points[3:]
    skin = _skin_colour(lab, eyes, nose, corners)
    mouth = _mouth_pixels(lab, skin, nose, corners)
    light = lab[..., 0]
    dark = mouth & (_luminance(image) < config.dark_lips * np.median(_luminance(image)[mouth]))
    between = dark if dark.any() else mouth & (light <= np.percentile(light[mouth], 15))
    line = _lip_line(mouth, between, corners[:, 0] if face.keypoints is not None else None)
    radius = 0.27 * float(np.linalg.norm(eyes[1] - eyes[0]))
    return FaceParts(box, eyes, radius, skin, mouth & ~dark, dark, line)


def _luminance(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _skin_colour(lab: np.ndarray, eyes: np.ndarray, nose: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Median colour (3,) of both cheeks: beside the nose, between eyes and corners of the mouth."""
    samples = []
    for eye, corner in zip(eyes, corners, strict=True):
        x, y = (0.5 * (eye + corner)).astype(int)
        reach = max(1, int(0.12 * abs(eyes[1, 0] - eyes[0, 0])))
        samples.append(lab[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1].reshape(-1, 3))
    return np.median(np.concatenate(samples), axis=0)


def _mouth_pixels(lab: np.ndarray, skin: np.ndarray, nose: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the mouth: what differs most from the skin near the corners, in one piece."""
    height, width = lab.shape[:2]
    centre, across = corners.mean(0), corners[1] - corners[0]
    half = max(float(np.linalg.norm(across)) / 2, 2.0)
    axis = across / max(float(np.linalg.norm(across)), 1e-6)
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    along = (x - centre[0]) * axis[0] + (y - centre[1]) * axis[1]
    down = (y - centre[1]) * axis[0] - (x - centre[0]) * axis[1]
    reach = 0.75 * float(np.linalg.norm(centre - nose))
    window = (np.abs(along) < 1.3 * half) & (np.abs(down) < min(reach, 0.85 * half))
    difference = np.clip(lab[..., 1] - skin[1], 0, None)  # redder than skin
    values = difference[window]
    scale = max(float(values.max()), 1e-3)
    level, _ = cv2.threshold((values / scale * 255).astype(np.uint8)[None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = (window & (difference > 0.85 * level / 255 * scale)).astype(np.uint8)
    # What lies between the lips, teeth or the dark of the mouth, belongs to them.
    tall = 2 * max(1, round(0.2 * half)) + 1
    mask = cv2.morphologyEx(np.pad(mask, tall), cv2.MORPH_CLOSE, np.ones((tall, 3), np.uint8))[tall:-tall, tall:-tall]
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if len(statistics) < 2:
        return window & (np.abs(down) < 0.3 * half)
    inside = window & (np.abs(along) < half)
    sizes = [int((inside & (pieces == piece)).sum()) for piece in range(1, len(statistics))]
    return pieces == 1 + int(np.argmax(sizes))


def _lip_line(mouth: np.ndarray, dark: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
    """Nine points between the lips: a parabola through the dark pixels, from end to end of the mouth.

    Lips fade towards their corners: where the mask is much narrower than a detector's corners (2,), those are its ends.
    """
    rows, columns = np.nonzero(mouth)
    start, end = columns.min() + 0.5, columns.max() + 0.5
    if corners is not None and end - start < _NARROW * (corners[1] - corners[0]):
        start, end = min(start, corners[0]), max(end, corners[1])
    dark_rows, dark_columns = np.nonzero(dark)
    middle = (start + end) / 2
    degree = 2 if len(np.unique(dark_columns)) >= 5 else 0
    curve = np.polyfit((dark_columns + 0.5 - middle) / (end - start), dark_rows + 0.5, degree)
    x = np.linspace(start, end, 9)
    return np.stack([x, np.polyval(curve, (x - middle) / (end - start))], axis=1).astype(np.float32)
