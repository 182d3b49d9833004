"""Burned-in text as a share of the image: static strokes of high contrast set in a line; needs no weights.

Measured, not read: static rows of letter-like shapes count, a shop sign or a printed shirt included.
Not found: letters lower than 1.8 % of the image's shorter side or with little contrast, joined handwriting, one or
two letters alone, and text that moves.
"""

import cv2
import numpy as np
from scipy.sparse.csgraph import connected_components

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
