"""Jerk of trajectories: the third difference, its size and its spectrum. What trembles has it at high frequencies."""

import numpy as np
from scipy.fft import dct

from common.constants import FPS

FAST = 10.0
"""Hz: lips close no faster; of the 12.5 Hz that 25 frames a second hold, what is above is not speech."""


def jerk_spectrum(track: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trajectories (T, N, 2) -> frequencies (T - 3,) in Hz and the power of the third difference at each, a mean over
    particles: its sum over frequencies is that of the squares over frames."""
    third = np.diff(track.astype(np.float64), n=3, axis=0).reshape(max(len(track) - 3, 0), -1)
    # A cosine transform, not a Fourier transform: a clip does not end where it began.
    power = np.square(dct(third, axis=0, norm="ortho")).sum(axis=1) / max(track.shape[1], 1)
    return np.arange(len(third)) * FPS / (2 * max(len(third), 1)), power


def fast_share(power: np.ndarray, frequency: np.ndarray) -> float:
    """The share of the power above `FAST`; 0 without motion."""
    total = power.sum()
    return float(power[frequency > FAST].sum() / total) if total > 0 else 0.0
