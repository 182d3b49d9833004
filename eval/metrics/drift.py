"""Does a long video slowly leave its beginning? Colour and likeness over time, in windows of one second.

Legend: T frames, W windows, E embedding width. Slopes are Theil-Sen medians, so one odd second moves nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.stats import theilslopes

from eval.metrics.likeness import cosines
from eval.records import UnscorableError

FPS = 25.0
WINDOW_SECONDS = 1.0
LOOKS_PER_WINDOW = 5  # frames in which a second's colour is measured
ENDS_SECONDS = 10.0  # the longest stretch of either end that "last less first" compares
LOWEST_SECONDS = 5.0
LOST_LIKENESS = 0.1
FEWEST_WINDOWS = 3


@dataclass(frozen=True)
class ColourDrift:
    """CIELAB units per minute: `lightness`, `green_red` (a*), `blue_yellow` (b*) of the mean colour and `total`, the
    length of the three; `contrast`, of the standard deviation of L*, and `saturation`, of the mean chroma.
    `shift` is the CIEDE2000 difference of the last window's mean colour to the reference's. `windows` were used."""

    lightness: float
    green_red: float
    blue_yellow: float
    total: float
    contrast: float
    saturation: float
    shift: float
    windows: int


@dataclass(frozen=True)
class IdentityDrift:
    """Cosine to the reference: `slope` per minute, `change` from the first to the last 10 s (halves of anything
    shorter than 20 s), `lowest` mean over 5 s, `seconds_to_loss` until it is 0.1 below its start (NaN where it never
    is), `coverage`, the share of frames with a face. `windows` were used."""

    slope: float
    change: float
    lowest: float
    seconds_to_loss: float
    coverage: float
    windows: int


def colour_drift(
    frames: Iterable[np.ndarray],
    reference: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    fps: float = FPS,
) -> ColourDrift:
    """Drift of frames (T, H, W, 3) uint8 RGB, which may come one by one.

    `reference` (H, W, 3) is the picture that `shift` is measured against, else the first second; `mask` (H, W) bool
    restricts all to a part of the picture, such as the background. UnscorableError for less than 3 s.
    """
    return judge_colours(colour_curve(frames, mask, fps), None if reference is None else colour_of(reference, mask))


def colour_curve(frames: Iterable[np.ndarray], mask: np.ndarray | None = None, fps: float = FPS) -> np.ndarray:
    """Colour (W, 5) as `colour_of` per second of frames (T, H, W, 3) uint8 RGB, from five frames of each."""
    step = max(1, round(fps * WINDOW_SECONDS / LOOKS_PER_WINDOW))
    looks = [(n, colour_of(frame, mask)) for n, frame in enumerate(frames) if n % step == 0]
    return window_means(np.array([colour for _, colour in looks]), np.array([n for n, _ in looks]) / fps)


def judge_colours(curve: np.ndarray, begin: np.ndarray | None = None) -> ColourDrift:
    """Drift of a `colour_curve` (W, 5); `begin` (5,) is what `shift` is measured from, else the first second."""
    _need_windows(len(curve))
    lightness, green_red, blue_yellow, contrast, saturation = (slope_per_minute(values) for values in curve.T)
    return ColourDrift(
        lightness=lightness,
        green_red=green_red,
        blue_yellow=blue_yellow,
        total=float(np.linalg.norm((lightness, green_red, blue_yellow))),
        contrast=contrast,
        saturation=saturation,
        shift=colour_difference((curve[0] if begin is None else begin)[:3], curve[-1, :3]),
        windows=len(curve),
    )


def identity_drift(embeddings: np.ndarray, reference: np.ndarray | None = None, fps: float = FPS) -> IdentityDrift:
    """Drift of ArcFace embeddings (T, E), NaN rows where no face is seen, from `reference` (E,).

    Without a reference the mean of the first second with a face is taken. UnscorableError for less than 3 s of faces.
    """
    seen = np.isfinite(embeddings).all(axis=1)
    seconds = np.arange(len(embeddings)) / fps
    _need_windows(len(np.unique(seconds[seen] // WINDOW_SECONDS)))
    if reference is None:
        first = seconds[seen] // WINDOW_SECONDS == seconds[seen][0] // WINDOW_SECONDS
        reference = embeddings[seen][first].mean(axis=0)
    likeness = np.full(len(embeddings), np.nan)
    likeness[seen] = cosines(embeddings[seen], reference)
    curve = window_means(likeness[:, None], seconds)[:, 0]
    ends = min(round(ENDS_SECONDS / WINDOW_SECONDS), max(1, len(curve) // 2))
    lost = np.flatnonzero(curve < curve[np.isfinite(curve)][0] - LOST_LIKENESS)
    return IdentityDrift(
        slope=slope_per_minute(curve),
        change=_mean(curve[-ends:]) - _mean(curve[:ends]),
        lowest=_lowest_mean(curve, round(LOWEST_SECONDS / WINDOW_SECONDS)),
        seconds_to_loss=float(lost[0]) * WINDOW_SECONDS if len(lost) else float("nan"),
        coverage=float(seen.mean()),
        windows=int(np.isfinite(curve).sum()),
    )


def colour_of(frame: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean L*, a*, b*, standard deviation of L* and mean chroma (5,) of a picture (H, W, 3) uint8 sRGB."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    pixels = (lab.reshape(-1, 3) if mask is None else lab[mask]).astype(np.float64)
    if not len(pixels):
        raise UnscorableError("no background: the mask leaves no pixel to measure")
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    return np.array([*pixels.mean(axis=0), pixels[:, 0].std(), chroma.mean()])


def colour_difference(first: np.ndarray, second: np.ndarray) -> float:
    """CIEDE2000 difference of two colours (3,) in CIELAB."""
    from skimage.color import deltaE_ciede2000

    return float(deltaE_ciede2000(first, second))


def window_means(values: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Means (W, k) over whole windows of one second of values (n, k) taken at `seconds` (n,).

    NaN values are left out, a window of nothing else is NaN; the second that is less than half there is dropped.
    """
    window = np.floor(seconds / WINDOW_SECONDS + 1e-9).astype(int)
    counts = np.bincount(window)
    whole = len(counts) - int(counts[-1] < counts[0] / 2)
    means = np.full((whole, values.shape[1]), np.nan)
    for number in range(whole):
        inside = values[window == number]
        finite = inside[np.isfinite(inside).all(axis=1)]
        if len(finite):
            means[number] = finite.mean(axis=0)
    return means


def slope_per_minute(curve: np.ndarray) -> float:
    """Theil-Sen slope per minute of one value per window (W,), NaN left out; 0 for fewer than two."""
    known = np.flatnonzero(np.isfinite(curve))
    if len(known) < 2:
        return 0.0
    return float(theilslopes(curve[known], known * WINDOW_SECONDS / 60).slope)


def _need_windows(count: int) -> None:
    if count < FEWEST_WINDOWS:
        raise UnscorableError(f"too short: {count} s measured where drift needs {FEWEST_WINDOWS}")


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _lowest_mean(curve: np.ndarray, length: int) -> float:
    starts = range(max(1, len(curve) - length + 1))
    means = np.array([_mean(curve[start : start + length]) for start in starts])
    return float(means[np.isfinite(means)].min())
