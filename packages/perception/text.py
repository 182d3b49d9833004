"""Burned-in text as a share of the image: by PP-OCR's text detector, else by static strokes set in a line.

Measured, not read: static rows of letter-like shapes count, a shop sign or a printed shirt included.
The strokes, which need no weights, miss letters lower than 1.8 % of the image's shorter side or with little contrast,
joined handwriting, one or two letters alone, and text that moves.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.sparse.csgraph import connected_components

from perception.onnx_nets import open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Of the network's map: what the package that carries it marks with its own thresholds is mostly hair and clothes.
NET_SIDE = 480  # px of the shorter side
LARGEST_RATIO = 4  # of the sides of the image looked at
PIXEL_SCORE, LINE_SCORE = 0.3, 0.6  # of a pixel of a line; of a line, mean over its rectangle
HIGHEST_LINE, LEAST_SLENDER = 0.12, 3.0  # short side, of the image's; long side over short side
GROWTH = 1.6  # the network marks the core of a line: each side moves out by this times area over perimeter
LEAST_SIDE = 2.0  # px of a line's core

WORKING_SIDE = (256, 480)  # px of the shorter side: smaller images are enlarged, larger ones reduced to it
STROKE = 11  # px at the working size, wider than a stroke of a letter
MIN_CONTRAST = 60  # of 255, of a stroke with its surroundings
LETTER_HEIGHT = (0.018, 0.16)  # of the shorter side
LEAST_HEIGHT = 8  # px at the working size: nothing lower can be told from grain
WIDEST_LETTER, WIDEST_GAP = 3.0, 1.6  # in heights of a letter; letters may touch, words stand apart
LEAST_FILL = 0.12  # share of its box that a letter's strokes cover
SIMILAR, LEVEL = 1.7, 0.35  # ratio of neighbours' heights; how far apart their middles may lie, in heights
LEAST_LETTERS = 4
CHANGED, LEAST_MOVING = 10, 0.001  # of 255; share of the image that must have changed by so much


class TextDetector:
    """Detector of PP-OCR (differentiable binarisation, Liao et al. 2020; `PP-OCRv6_det_small.onnx`, Apache-2.0), with a
    rule of our own for what counts as a line of text."""

    def __init__(self, session: "InferenceSession") -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def mask(self, frame: np.ndarray) -> np.ndarray:
        """Where (H, W) bool an RGB image (H, W, 3) uint8 shows lines of text, moving or still."""
        height, width = frame.shape[:2]
        scale = min(NET_SIDE / min(height, width), NET_SIDE * LARGEST_RATIO / max(height, width))
        size = [32 * max(1, round(side * scale / 32)) for side in (width, height)]
        image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        pixels = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
        (heat,) = self._session.run(None, {self._input: pixels})
        found = np.zeros((size[1], size[0]), np.uint8)
        for box in text_boxes(heat[0, 0]):
            cv2.fillPoly(found, [np.rint(box).astype(np.int32)], (1,))
        return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def text_boxes(heat: np.ndarray) -> list[np.ndarray]:
    """Corners (4, 2) px of the lines in a map (H, W) float32 of probabilities: sure, low and slender rectangles.

    Of real text, captions of 12 px included, the mean is 0.63 and more; of what else is as slender it is below 0.56.
    """
    marked = cv2.dilate((heat > PIXEL_SCORE).astype(np.uint8), np.ones((2, 2), np.uint8))
    boxes = []
    for contour in cv2.findContours(marked, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        centre, sides, angle = cv2.minAreaRect(contour)
        low, long = sorted(sides)
        if low < LEAST_SIDE or low > HIGHEST_LINE * min(heat.shape) or long < LEAST_SLENDER * low:
            continue
        inside = np.zeros(heat.shape, np.uint8)
        cv2.fillPoly(inside, [np.rint(cv2.boxPoints((centre, sides, angle))).astype(np.int32)], (1,))
        if cv2.mean(heat, inside)[0] >= LINE_SCORE:
            apart = GROWTH * low * long / (2 * (low + long))
            boxes.append(cv2.boxPoints((centre, (sides[0] + 2 * apart, sides[1] + 2 * apart), angle)))
    return boxes


def load_text_detector(path: Path | str) -> TextDetector:
    """Read a text detector of PP-OCR. OnnxError when the file is absent, unreadable or another network."""
    maps = [(None, 1, None, None)]
    return TextDetector(open_network(Path(path), "PP-OCRv6_det_small.onnx", [(None, 3, None, None)], maps))


def text_mask(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where (H, W) bool two RGB images (H, W, 3) of one shot, some tenths of a second apart, show the same text.

    Whole lines are marked, from the first letter to the last. Nothing is marked where the whole image is static:
    letters cannot be told from any other pattern there.
    """
    height, width = first.shape[:2]
    scale = float(np.clip(min(height, width), *WORKING_SIDE)) / min(height, width)
    size = round(width * scale), round(height * scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    greys = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=method) for frame in (first, second)
    ]
    found = np.zeros((size[1], size[0]), np.uint8)
    if float(np.mean(cv2.absdiff(*greys) > CHANGED)) < LEAST_MOVING:
        return np.zeros((height, width), bool)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))
    for way in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):  # bright letters, dark letters
        still = np.minimum(*(cv2.morphologyEx(grey, way, kernel) for grey in greys))
        for x0, y0, x1, y1 in text_lines(still > MIN_CONTRAST):
            found[y0:y1, x0:x1] = 1
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def text_lines(strokes: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes x0, y0, x1, y1 of the lines in a map (H, W) bool of strokes: rows of shapes alike in height and level."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(strokes.astype(np.uint8), connectivity=8)
    x, y, width, height, area = stats[1:].T.astype(np.float64)
    low, high = (share * min(strokes.shape) for share in LETTER_HEIGHT)
    letter = (height >= max(LEAST_HEIGHT, low)) & (height <= high) & (width <= WIDEST_LETTER * height)
    letter &= area > LEAST_FILL * width * height
    x, y, width, height = (side[letter] for side in (x, y, width, height))
    lower, middle = np.minimum.outer(height, height), y + height / 2
    gap = np.maximum.outer(x, x) - np.minimum.outer(x + width, x + width)
    joined = (np.maximum.outer(height, height) < SIMILAR * lower) & (gap < WIDEST_GAP * lower)
    joined &= np.abs(np.subtract.outer(middle, middle)) < LEVEL * lower
    count, line = connected_components(joined, directed=False) if len(x) else (0, np.zeros(0, int))
    members = [line == number for number in range(count)]
    return [
        (int(x[own].min()), int(y[own].min()), int((x + width)[own].max()), int((y + height)[own].max()))
        for own in members
        if own.sum() >= LEAST_LETTERS
    ]


def nearness(shape: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """Weight (H, W) of every pixel: 1 inside a face's box x0, y0, x1, y1, falling by e with each side of it away."""
    rows, columns = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None, :] + 0.5
    x0, y0, x1, y1 = (float(value) for value in box)
    across = np.maximum(0, np.maximum(x0 - columns, columns - x1))
    down = np.maximum(0, np.maximum(y0 - rows, rows - y1))
    return np.exp(-np.hypot(across, down) / max(x1 - x0, y1 - y0, 1.0))
