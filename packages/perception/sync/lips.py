"""Lip motion and its agreement with the loudness of the voice, from differences of frames; needs no weights."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from common.constants import SAMPLES_PER_FRAME

SIDE = 96  # px, of the crop (perception.faces.crop.crop_track) that is looked at
# The mouth in such a crop, whose upper 71 % are the face's box: rows, columns.
MOUTH = (slice(42, 67), slice(29, 67))
REACH = 5  # px that a head may move between the images compared
STEP = 2  # frames between them
SMOOTHING = 2.0  # frames; lips open before a vowel is loud and close after it
LEAST_LEVEL = 1e-5  # mean square that counts as silence


@dataclass(frozen=True)
class LipMotion:
    """`motion`: how much the mouth changes beyond moving along with the head, relative to its contrast. Drawn faces:
    0.65 to 1.2 speaking, below 0.36 with closed lips; three real clips of speakers 0.45 to 0.65. `agreement` -1..1:
    correlation of that change over time with the loudness, 0.3 to 0.4 on average when they belong together, 0.0 to 0.2
    else, and often far from either: enough to prefer one of two faces, not to judge a clip."""

    motion: float
    agreement: float


def lip_motion(crops: np.ndarray, wave: np.ndarray) -> LipMotion:
    """Measure crops (T, S, S, 3) uint8 RGB at 25 fps (`crop_track`) and their audio (T*640,) at 16 kHz."""
    changes = mouth_changes(crops)
    if not len(changes):
        return LipMotion(0.0, 0.0)
    # The upper quartile: speech has pauses, and blinks are no speech.
    return LipMotion(float(np.percentile(changes, 75)), _agreement(changes, wave))


def mouth_changes(crops: np.ndarray) -> np.ndarray:
    """How much the mouth changes beyond moving with the head, relative to its contrast, of crops (T, S, S, 3) uint8 RGB
    -> (T - 2,): entry t compares the frames t and t + 2."""
    greys = [cv2.resize(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), (SIDE, SIDE)).astype(np.float32) for crop in crops]
    if len(greys) <= STEP:
        return np.zeros(0)
    contrast = float(np.mean([grey[MOUTH].std() for grey in greys]))
    return np.array([_change(*pair) for pair in zip(greys, greys[STEP:], strict=False)]) / max(contrast, 1.0)


def _change(before: np.ndarray, after: np.ndarray) -> float:
    """Root mean square difference of the mouth to its best match nearby: what moving the head does not explain."""
    rows, columns = MOUTH
    around = after[rows.start - REACH : rows.stop + REACH, columns.start - REACH : columns.stop + REACH]
    mouth = before[MOUTH]
    return float(np.sqrt(max(0.0, float(cv2.matchTemplate(around, mouth, cv2.TM_SQDIFF).min())) / mouth.size))


def _agreement(changes: np.ndarray, wave: np.ndarray) -> float:
    frames = min(len(changes) + STEP, len(wave) // SAMPLES_PER_FRAME)
    if frames <= STEP + 1:
        return 0.0
    power = np.square(wave[: frames * SAMPLES_PER_FRAME].astype(np.float64)).reshape(frames, -1).mean(axis=1)
    level = np.convolve(10 * np.log10(np.maximum(power, LEAST_LEVEL)), np.full(STEP + 1, 1 / (STEP + 1)), "valid")
    curves = gaussian_filter1d(np.stack([changes[: len(level)], level]), SMOOTHING, axis=1)
    if np.ptp(curves, axis=1).min() <= 1e-9:
        return 0.0
    return float(np.corrcoef(curves)[0, 1])
