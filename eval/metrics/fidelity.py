"""PSNR and SSIM against the real frames: only for pairs that are aligned in time and of one size.

For freely generated videos both mostly punish other gestures. Values are per frame, never of the whole video at once.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from eval.features.records import UnscorableError

PSNR_CAP = 100.0  # dB, of equal frames
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Fidelity:
    """Per frame: `psnr` (T,) in dB and `ssim` (T,) -1..1."""

    psnr: np.ndarray
    ssim: np.ndarray


def fidelity(frames: np.ndarray, real: np.ndarray) -> Fidelity:
    """Compare frames (T, H, W, 3) with real ones (S, H, W, 3), both uint8 RGB, over the frames that both have.

    Raises UnscorableError when the images differ in size or are below 11 px, the window of SSIM.
    """
    if frames.shape[1:] != real.shape[1:]:
        sizes = [f"{video.shape[2]}x{video.shape[1]}" for video in (frames, real)]
        raise UnscorableError(f"another size: {sizes[0]} px cannot be compared with {sizes[1]} px")
    if min(frames.shape[1:3]) < _WINDOW:
        raise UnscorableError(f"too small: SSIM needs {_WINDOW} px and got {frames.shape[2]}x{frames.shape[1]}")
    pairs = list(zip(frames, real, strict=False))
    return Fidelity(np.array([psnr(*pair) for pair in pairs]), np.array([ssim(*pair) for pair in pairs]))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two images (H, W, 3) uint8, dB, at most 100."""
    error = float(np.square(first.astype(np.float64) - second).mean())
    return PSNR_CAP if error == 0 else min(PSNR_CAP, float(10 * np.log10(255**2 / error)))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two images (H, W, 3) uint8 RGB: Gaussian window of 11 px, sigma 1.5, the mean over the
    colours and the places where the whole window lies inside. Source: Wang et al. 2004."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    shared = _blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * shared + _C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def _blur(image: np.ndarray) -> np.ndarray:
    margin = _WINDOW // 2
    return cv2.GaussianBlur(image, (_WINDOW, _WINDOW), _SIGMA)[margin:-margin, margin:-margin]
