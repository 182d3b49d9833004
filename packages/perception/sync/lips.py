"""Lip motion and its agreement with the loudness of the voice, from differences of frames; needs no weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from common.constants import SAMPLES_PER_FRAME
from perception.faces.align import TEMPLATE, similarity

SIDE = 96  # px, of the crop (perception.faces.crop.crop_track) that is looked at
# The mouth in such a crop, whose upper 71 % are the face's box: rows, columns.
MOUTH = (slice(42, 67), slice(29, 67))
# The mouth in a patch that the keypoints have levelled: 40 x 32 px of a face of 112, and `REACH` px around.
PATCH = (32, 40)  # rows, columns
REACH = 5  # px that a head may move between the images compared
STEP = 2  # frames between them
SMOOTHING = 2.0  # frames
LEAST_LEVEL = 1e-5  # mean square that counts as silence


@dataclass(frozen=True)
class LipMotion:
    """`motion`: how much the mouth changes beyond moving along with the head, relative to its contrast. Drawn faces:
    0.65 to 1.2 speaking, below 0.36 with closed lips; three real clips of speakers 0.45 to 0.67. `agreement` -1..1:
    correlation of that change over time with the loudness, 0.3 to 0.5 on average when they belong together, 0.0 to 0.1
    else, and often far from either: a preference between faces, and over all clips of a source a flag, never a reason
    to refuse one."""

    motion: float
    agreement: float


def lip_motion(images: np.ndarray, wave: np.ndarray, lead: int = 0) -> LipMotion:
    """Measure images of a mouth at 25 fps and their audio (T*640,) at 16 kHz: crops (T, S, S, 3) uint8 RGB of the face
    (`crop_track`), or levelled patches (T, 42, 50) uint8 (`level_mouths`).

    Agreement is looked for at one lag, at which lips move `lead` frames before they are heard: the best of several says
    nothing."""
    changes = mouth_changes(images) if images.ndim == 4 else patch_changes(images)
    if not len(changes):
        return LipMotion(0.0, 0.0)
    # The upper quartile: speech has pauses, and blinks are no speech.
    return LipMotion(float(np.percentile(changes, 75)), _agreement(changes, wave, lead))


def mouth_changes(crops: np.ndarray) -> np.ndarray:
    """How much the mouth changes beyond moving with the head, relative to its contrast, of crops (T, S, S, 3) uint8 RGB
    -> (T - 2,): entry t compares the frames t and t + 2."""
    greys = [cv2.resize(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), (SIDE, SIDE)) for crop in crops]
    return _changes(greys, *MOUTH)


def level_mouths(frames: Iterable[np.ndarray], points: np.ndarray) -> np.ndarray:
    """The mouth of one face in frames (T, H, W, 3) uint8 RGB, turned and scaled by its keypoints (T, 5, 2) px ->
    (T, 42, 50) uint8 grey."""
    rows, columns = (side + 2 * REACH for side in PATCH)
    middle = TEMPLATE[3:].mean(axis=0)
    patches: list[np.ndarray] = [np.zeros((0, rows, columns), np.uint8)]
    for frame, five in zip(frames, points, strict=True):
        move = similarity(five, TEMPLATE)
        move[:, 2] += np.array([columns, rows]) / 2 - middle
        patches.append(cv2.cvtColor(cv2.warpAffine(frame, move, (columns, rows)), cv2.COLOR_RGB2GRAY)[None])
    return np.concatenate(patches)


def patch_changes(patches: np.ndarray) -> np.ndarray:
    """`mouth_changes` of levelled patches (T, 42, 50) uint8 -> (T - 2,)."""
    return _changes(list(patches), slice(REACH, REACH + PATCH[0]), slice(REACH, REACH + PATCH[1]))


def _changes(greys: Sequence[np.ndarray], rows: slice, columns: slice) -> np.ndarray:
    """Changes of the mouth, which lies in these rows and columns, relative to its contrast."""
    if len(greys) <= STEP:
        return np.zeros(0)
    images = [grey.astype(np.float32) for grey in greys]
    contrast = float(np.mean([image[rows, columns].std() for image in images]))
    pairs = zip(images, images[STEP:], strict=False)
    return np.array([_change(*pair, rows, columns) for pair in pairs]) / max(contrast, 1.0)


def _change(before: np.ndarray, after: np.ndarray, rows: slice, columns: slice) -> float:
    """Root mean square difference of the mouth to its best match nearby: what moving the head does not explain."""
    around = after[rows.start - REACH : rows.stop + REACH, columns.start - REACH : columns.stop + REACH]
    mouth = before[rows, columns]
    return float(np.sqrt(max(0.0, float(cv2.matchTemplate(around, mouth, cv2.TM_SQDIFF).min())) / mouth.size))


def _agreement(changes: np.ndarray, wave: np.ndarray, lead: int) -> float:
    frames = min(len(changes) + STEP, len(wave) // SAMPLES_PER_FRAME)
    if frames <= STEP + 1 + lead:
        return 0.0
    power = np.square(wave[: frames * SAMPLES_PER_FRAME].astype(np.float64)).reshape(frames, -1).mean(axis=1)
    level = np.convolve(10 * np.log10(np.maximum(power, LEAST_LEVEL)), np.full(STEP + 1, 1 / (STEP + 1)), "valid")
    curves = gaussian_filter1d(np.stack([changes[: len(level) - lead], level[lead:]]), SMOOTHING, axis=1)
    if np.ptp(curves, axis=1).min() <= 1e-9:
        return 0.0
    return float(np.corrcoef(curves)[0, 1])
