"""Alignment of a face by its five keypoints, as ArcFace and the levelled mouth take it."""

import cv2
import numpy as np

SIDE = 112
# Where the eyes (left as seen first), the nose and the mouth corners lie in an aligned face of 112 px.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float64
)


def align_face(frame: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Turn, scale and shift an image (H, W, 3) so that `keypoints` (5, 2) px come to lie on TEMPLATE -> (112, 112, 3).

    Black outside the image.
    """
    return cv2.warpAffine(frame, similarity(keypoints, TEMPLATE), (SIDE, SIDE))


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift (2, 3), without mirroring, that brings `points` (n, 2) closest to `target` (n, 2).

    Least squares (Umeyama 1991): as complex numbers, target = a * points + b is an ordinary line fit.
    """
    z, w = (pair[:, 0] + 1j * pair[:, 1] for pair in (np.asarray(points, np.float64), np.asarray(target, np.float64)))
    apart = z - z.mean()
    a = np.vdot(apart, w - w.mean()) / np.vdot(apart, apart)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
