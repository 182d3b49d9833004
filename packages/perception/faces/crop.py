"""Crops of one face along its track, as SyncNet's own pipeline cuts them."""

import cv2
import numpy as np
from scipy.ndimage import median_filter

CROP_MARGIN = 0.4  # of the face, beyond its box

CROP_PADDING = 110  # grey value outside the image

_TRACK_FILTER = 13  # frames


def crop_track(frames: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Cut one face out of frames (T, H, W, 3) along boxes (T, 4) xyxy px -> (T, size, size, 3), same channel order.

    With s half the larger box side, all median-filtered over 13 frames: a square of 2.8 s, from s above the centre to
    1.8 s below, grey (110) outside the image. Source: joonson/syncnet_python, run_pipeline.py `crop_video`.
    """
    boxes = np.asarray(boxes, np.float64)
    half = np.max(boxes[:, 2:] - boxes[:, :2], axis=1) / 2
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # The reference pads with zeros: a filter longer than the track would return them.
    kernel = min(_TRACK_FILTER, len(boxes) - 1 + len(boxes) % 2)
    x, y, s = (median_filter(values, kernel, mode="constant") for values in (*centres.T, half))
    side, below = s * (1 + CROP_MARGIN), s * (1 + 2 * CROP_MARGIN)
    edges = np.floor(np.stack([y - s, y + below, x - side, x + side], axis=1)).astype(int)
    return np.stack([_cut(frame, edge, size) for frame, edge in zip(frames, edges.tolist(), strict=True)])


def _cut(frame: np.ndarray, edges: list[int], size: int) -> np.ndarray:
    before_y, after_y, before_x, after_x = edges
    height, width = frame.shape[:2]
    inside = frame[max(before_y, 0) : max(after_y, 0), max(before_x, 0) : max(after_x, 0)]
    margins = max(0, -before_y), max(0, after_y - height), max(0, -before_x), max(0, after_x - width)
    square = cv2.copyMakeBorder(inside, *margins, cv2.BORDER_CONSTANT, value=(CROP_PADDING,) * 3)
    return cv2.resize(square, (size, size))
