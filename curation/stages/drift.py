"""Does the sound run away from the lips? Offsets of the first, middle and last third, and the best straight line."""

from dataclasses import dataclass

import numpy as np

LEAST_WINDOWS = 45  # of five frames: a third must hold a syllable or two
MAX_DRIFT = 15  # frames from the first window to the last
LEAST_INSIDE = 0.7  # share of a line's windows that must meet sound
OFF_LINE = 2.0  # frames by which the offset of a third may miss the line


@dataclass(frozen=True)
class Drift:
    """`thirds`: offset in frames of each third by itself (positive = the sound leads the picture). `frames`: growth of
    the offset from the first window to the last along the straight line that fits best, None when the first or the
    last third does not lie on it (the middle alone may be chance); `confidence` along that line, on the scale of
    Sync-C, which it equals where nothing drifts."""

    thirds: tuple[int, int, int]
    frames: int | None
    confidence: float


def measure_drift(by_window: np.ndarray) -> Drift | None:
    """Read distances (L, 2V+1) of L windows at shifts -V to V (`SyncResult.by_window`); None for less than 45 windows.

    Sound beyond the ends is left out. A third's offset may be chance, and of a thousand lines one may fit by chance;
    both together hardly ever are.
    """
    windows, shifts = by_window.shape
    if windows < LEAST_WINDOWS:
        return None
    most = shifts // 2
    heard = np.arange(windows)[:, None] + np.arange(-most, most + 1)
    distances = np.where((heard >= 0) & (heard < windows), by_window, np.nan)
    first, middle, last = (most - int(np.nanargmin(_mean(part))) for part in np.array_split(distances, 3))
    least, _, growth, centre = min(
        (distance, abs(growth), growth, most - column)
        for growth in range(-MAX_DRIFT, MAX_DRIFT + 1)
        for distance, column in [_best_line(distances, growth)]
    )
    confidence = float(np.nanmedian(_mean(distances))) - least
    ends = ((first, centre + growth / 3), (last, centre - growth / 3))
    on_it = all(abs(third - offset) <= OFF_LINE for third, offset in ends)
    return Drift((first, middle, last), -growth if on_it else None, round(confidence, 4))


def _mean(distances: np.ndarray) -> np.ndarray:
    """Mean over the windows; nan for a shift at which no window meets sound."""
    count = np.isfinite(distances).sum(axis=0)
    return np.where(count > 0, np.nansum(distances, axis=0) / np.maximum(count, 1), np.nan)


def _best_line(distances: np.ndarray, growth: int) -> tuple[float, int]:
    """Least mean distance along the lines whose shift grows by `growth` from the first window to the last, and the
    column through whose middle that line goes."""
    windows, shifts = distances.shape
    bend = np.rint(growth * np.linspace(-0.5, 0.5, windows)).astype(int)[:, None]
    columns = bend + np.arange(shifts)
    reached = np.take_along_axis(distances, np.clip(columns, 0, shifts - 1), axis=1)
    lines = np.where((columns >= 0) & (columns < shifts), reached, np.nan)
    means = np.where(np.isfinite(lines).mean(axis=0) < LEAST_INSIDE, np.inf, _mean(lines))
    return float(np.min(means)), int(np.argmin(means))
