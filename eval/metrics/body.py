"""Hand and body motion from key points: HKC, HKV, motion variance, jerk and wrist path.

Poses are (T, 133, 3) of COCO WholeBody: x px, y px, score; NaN where nobody is detected. Lengths are in shoulder
widths, so that they do not depend on the image size. No code of HKC and HKV (CyberHost, EchoMimicV2) was published:
these are our definitions.
"""

from dataclasses import dataclass

import numpy as np

from common.constants import FPS
from eval.features.records import UnscorableError
from perception.pose import LEFT_HAND, RIGHT_HAND

SURE = 0.3  # score from which a point counts as detected
SHOULDERS, WRISTS, HANDS = (5, 6), (9, 10), (LEFT_HAND, RIGHT_HAND)
MOVING = (0, 7, 8, 9, 10)  # nose, elbows, wrists: what moves against the shoulders
# Savitzky-Golay: a cubic through seven frames removes the detector's jitter and keeps jerk.
SMOOTHING_FRAMES, SMOOTHING_ORDER = 7, 3


@dataclass(frozen=True)
class HandScores:
    """`hkc` 0..1: mean score of the 21 points of the hands present; `hkv`: variance of their places in squared
    shoulder widths; `presence`: share of all frames and hands that are there; `hkc_all`: as hkc, a hand that is missing
    where the real video shows one counting 0 (NaN without a real video). `frames` show a hand."""

    hkc: float
    hkv: float
    presence: float
    hkc_all: float
    frames: int


@dataclass(frozen=True)
class BodyMotion:
    """Of nose, elbows and wrists against the shoulders: `variance` in squared shoulder widths, `jerk` in shoulder
    widths per s^3, `wrist_path` in shoulder widths per second. A still body is perfectly smooth: read jerk
    together with the path. `frames` were used."""

    variance: float
    jerk: float
    wrist_path: float
    frames: int


def hand_scores(poses: np.ndarray, real: np.ndarray | None = None) -> HandScores:
    """Score the hands of poses (T, 133, 3), compared with those of the `real` video, frame by frame.

    Raises UnscorableError where no hand is present in any frame.
    """
    present = hands_present(poses)
    if not present.any():
        raise UnscorableError(f"no hands: none in {len(poses)} frames")
    scores = np.stack([np.clip(poses[:, hand, 2], 0, 1).mean(axis=1) for hand in HANDS], axis=1)
    places = _against_shoulders(poses)
    spreads = [_spread(places[there][:, hand]) for hand, there in zip(HANDS, present.T, strict=True)]
    hkc_all = float("nan")
    if real is not None:
        frames = min(len(poses), len(real))
        due = present[:frames] | hands_present(real[:frames])
        hkc_all = float(np.where(present[:frames], scores[:frames], 0)[due].mean()) if due.any() else hkc_all
    spreads = [spread for spread in spreads if np.isfinite(spread)]
    hkv = float(np.mean(spreads)) if spreads else float("nan")
    frames = int(present.any(axis=1).sum())
    return HandScores(float(scores[present].mean()), hkv, float(present.mean()), hkc_all, frames)


def hands_present(poses: np.ndarray) -> np.ndarray:
    """Whether the left and the right hand are present (T, 2) bool: their wrist is detected."""
    return np.nan_to_num(poses[:, WRISTS, 2]) >= SURE


def body_motion(poses: np.ndarray, fps: float = FPS) -> BodyMotion:
    """Measure the motion in poses (T, 133, 3) with `fps` frames per second.

    Raises UnscorableError with fewer than seven frames in a row in which the shoulders and a moving point are seen.
    """
    runs, _ = joint_runs(poses)
    pooled = [run for run in runs if len(run) >= SMOOTHING_FRAMES]
    if not pooled:
        raise UnscorableError(f"no body: not seen in {SMOOTHING_FRAMES} frames in a row")
    from scipy.signal import savgol_filter  # half a second to import: tables of metrics do not need it

    smooth = [savgol_filter(run, SMOOTHING_FRAMES, SMOOTHING_ORDER, axis=0) for run in pooled]
    jerks = np.concatenate([np.linalg.norm(np.diff(run, 3, axis=0), axis=2).mean(axis=1) for run in smooth]) * fps**3
    steps = np.concatenate([np.linalg.norm(np.diff(run[:, -2:], axis=0), axis=2).mean(axis=1) for run in smooth])
    variance = float(np.concatenate(pooled).var(axis=0).sum(axis=1).mean())
    return BodyMotion(variance, float(jerks.mean()), float(steps.mean()) * fps, sum(map(len, pooled)))


def joint_runs(poses: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """Places (n, 5, 2) of nose, elbows and wrists against the shoulders, one array per run of frames that show all, and
    the first frame of each run."""
    visible = np.nan_to_num(poses[:, (*SHOULDERS, *MOVING), 2]).min(axis=1) >= SURE
    places = _against_shoulders(poses)[:, MOVING]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visible, [False]]).astype(int)))
    spans = edges.reshape(-1, 2).tolist()
    return [places[start:stop] for start, stop in spans], [start for start, _ in spans]


def _against_shoulders(poses: np.ndarray) -> np.ndarray:
    """Places (T, 133, 2) from the middle of the shoulders, in the clip's median shoulder width."""
    first, second = (poses[:, side, :2].astype(np.float64) for side in SHOULDERS)
    widths = np.linalg.norm(first - second, axis=1)
    measured = widths[np.isfinite(widths) & (widths > 0)]
    width = float(np.median(measured)) if len(measured) else 1.0
    return (poses[..., :2] - ((first + second) / 2)[:, None]) / width


def _spread(places: np.ndarray) -> float:
    """Mean over points of var x + var y of places (n, points, 2); NaN of fewer than two frames."""
    return float(places.var(axis=0).sum(axis=1).mean()) if len(places) > 1 else float("nan")
