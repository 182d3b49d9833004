"""Drift of a long video: colour and likeness over time, in windows of one second.

Legend: T frames of H x W pixels, S windows, E embedding width, n faces. Slopes are Theil-Sen medians, so one odd second
moves nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from common.constants import FPS
from eval.features.records import UnscorableError
from eval.metrics.likeness import cosines

WINDOW_SECONDS = 1.0
SAMPLES_PER_WINDOW = 5  # frames in which a second's colour is measured
ENDS_SECONDS = 10.0  # the longest stretch of either end that "last less first" compares
LOWEST_SECONDS = 5.0
LOST_LIKENESS = 0.1
FEWEST_WINDOWS = 3
HEAD_ROOM = 0.25  # of a face's width to either side and of its height above: hair
CHIN = 0.1  # of its height above its lower edge, where shoulders may begin
SHOULDERS = 4.0  # widths of a face; an adult's are three
LEAST_BACKGROUND = 0.01  # of the image


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


def colour_curve(frames: Iterable[np.ndarray], mask: np.ndarray | None = None, fps: float = FPS) -> np.ndarray:
    """Colour (S, 5) as `colour_of` per second of frames (T, H, W, 3) uint8 RGB, which may be an iterator, from five
    frames of each; `mask` (H, W) bool restricts it to a part of the image."""
    return colour_curves(frames, [mask], fps)[0]


def colour_curves(
    frames: Iterable[np.ndarray], masks: Sequence[np.ndarray | None], fps: float = FPS
) -> list[np.ndarray]:
    """A `colour_curve` for each of `masks`, from one pass over the frames."""
    step = max(1, round(fps * WINDOW_SECONDS / SAMPLES_PER_WINDOW))
    samples = [(n, [colour_of(frame, mask) for mask in masks]) for n, frame in enumerate(frames) if n % step == 0]
    seconds = np.array([n for n, _ in samples]) / fps
    return [window_means(np.array([colours[at] for _, colours in samples]), seconds) for at in range(len(masks))]


def background_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (H, W) bool that no person covers in any frame, from the boxes (n, 4), xyxy px, of all faces of a video.

    A person is the head, half as wide again as the face and a quarter higher, and from the chin down everything between
    shoulders four faces apart. All faces make one mask, so that the same pixels are compared over time.
    Raises UnscorableError without a face, and where less than a hundredth of the image is left.
    """
    if not len(boxes):
        raise UnscorableError("no background: no face is seen that it could be told from")
    background = np.ones((height, width), bool)
    for x0, y0, x1, y1 in np.asarray(boxes, np.float64):
        hair = HEAD_ROOM * np.array([x1 - x0, y1 - y0])
        _cover(background, x0 - hair[0], y0 - hair[1], x1 + hair[0], y1)
        reach = SHOULDERS / 2 * (x1 - x0)
        _cover(background, (x0 + x1) / 2 - reach, y1 - CHIN * (y1 - y0), (x0 + x1) / 2 + reach, height)
    if background.mean() < LEAST_BACKGROUND:
        raise UnscorableError("no background: people fill the picture")
    return background


def _cover(background: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> None:
    low, high = np.floor([max(0, x0), max(0, y0)]).astype(int), np.ceil([max(0, x1), max(0, y1)]).astype(int)
    background[low[1] : high[1], low[0] : high[0]] = False


def judge_colours(curve: np.ndarray, begin: np.ndarray | None = None) -> ColourDrift:
    """Drift of a `colour_curve` (S, 5); `begin` (5,) is what `shift` is measured from, else the first second.

    Raises UnscorableError for less than 3 s.
    """
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
    """Drift of ArcFace embeddings (T, E), NaN rows where no face is detected, from `reference` (E,).

    Without a reference the mean of the first second with a face is taken. Raises UnscorableError for less than 3 s.
    """
    detected = np.isfinite(embeddings).all(axis=1)
    seconds = np.arange(len(embeddings)) / fps
    _need_windows(len(np.unique(seconds[detected] // WINDOW_SECONDS)))
    if reference is None:
        first = seconds[detected] // WINDOW_SECONDS == seconds[detected][0] // WINDOW_SECONDS
        reference = embeddings[detected][first].mean(axis=0)
    likeness = np.full(len(embeddings), np.nan)
    likeness[detected] = cosines(embeddings[detected], reference)
    curve = window_means(likeness[:, None], seconds)[:, 0]
    ends = min(round(ENDS_SECONDS / WINDOW_SECONDS), max(1, len(curve) // 2))
    lost = np.flatnonzero(curve < curve[np.isfinite(curve)][0] - LOST_LIKENESS)
    return IdentityDrift(
        slope=slope_per_minute(curve),
        change=_mean(curve[-ends:]) - _mean(curve[:ends]),
        lowest=_lowest_mean(curve, round(LOWEST_SECONDS / WINDOW_SECONDS)),
        seconds_to_loss=float(lost[0]) * WINDOW_SECONDS if len(lost) else float("nan"),
        coverage=float(detected.mean()),
        windows=int(np.isfinite(curve).sum()),
    )


def colour_of(frame: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Mean L*, a*, b*, standard deviation of L* and mean chroma (5,) of an image (H, W, 3) uint8 sRGB."""
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
    """Means (S, k) over whole windows of one second of values (n, k) taken at `seconds` (n,).

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
    """Theil-Sen slope per minute of one value per window (S,), NaN left out; 0 for fewer than two."""
    from scipy.stats import theilslopes

    windows = np.flatnonzero(np.isfinite(curve))
    if len(windows) < 2:
        return 0.0
    return float(theilslopes(curve[windows], windows * WINDOW_SECONDS / 60).slope)


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
