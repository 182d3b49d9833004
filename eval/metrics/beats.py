"""Beat alignment (BAS): distance of gesture beats to the onsets of the audio.

Motion beats are the local minima of the joints' speed, audio beats are the onsets. The mean is over motion beats, sigma
0.1 s; published variants differ in both. Jitter makes beats everywhere and raises the score: look at the excess over
the same motion against shifted audio.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.constants import AUDIO_RATE, FPS
from eval.features.records import UnscorableError

SIGMA = 0.1  # seconds
SPEED_SMOOTHING = 2.0  # frames
HOP, WINDOW = 160, 512  # samples: 10 and 32 ms
PEAK_REACH, MEAN_REACH = 5, 20  # hops around an onset in which it is the greatest; which the threshold averages
RISE = 0.1  # of the largest rise of the clip, by which an onset stands above that average
COMPRESSION = 100.0
SHIFTS = 200


def audio_onsets(wave: np.ndarray) -> np.ndarray:
    """Seconds (n,) of the onsets in mono audio (N,) at 16 kHz: peaks of the spectral flux."""
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    if len(wave) < WINDOW:
        return np.zeros(0)
    padded = np.pad(np.asarray(wave, np.float64), WINDOW // 2)
    frames = sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    loudness = np.log1p(COMPRESSION * np.abs(np.fft.rfft(frames, axis=1)))
    flux = np.maximum(np.diff(loudness, axis=0, prepend=loudness[:1]), 0).sum(axis=1)
    if flux.max() <= 0:
        return np.zeros(0)
    above = flux > uniform_filter1d(flux, 2 * MEAN_REACH + 1) + RISE * flux.max()
    peaks = np.flatnonzero(above & (flux == maximum_filter1d(flux, 2 * PEAK_REACH + 1)))
    return peaks * HOP / AUDIO_RATE


def motion_beats(runs: Sequence[np.ndarray], starts: Sequence[int], fps: float = FPS) -> np.ndarray:
    """Seconds (n,) of the local minima of the mean speed in `runs` of joint places (frames, joints, 2), each from the
    frame of `starts` on."""
    from scipy.ndimage import gaussian_filter1d

    beats = []
    for places, start in zip(runs, starts, strict=True):
        if len(places) < 4:
            continue
        speed = gaussian_filter1d(np.linalg.norm(np.diff(places, axis=0), axis=2).mean(axis=1), SPEED_SMOOTHING)
        lowest = np.flatnonzero((speed[1:-1] < speed[:-2]) & (speed[1:-1] <= speed[2:])) + 1
        beats.append((start + lowest + 0.5) / fps)  # speed i lies between the frames i and i + 1
    return np.concatenate(beats) if beats else np.zeros(0)


def beat_alignment(motion: np.ndarray, audio: np.ndarray, sigma: float = SIGMA) -> float:
    """Mean over motion beats (n,) of exp(-d^2 / (2 sigma^2)), d the seconds to the nearest of the audio's (m,), 0..1.

    Source: Li et al. 2021 (AIST++), with the roles as in Bailando. Raises UnscorableError without beats on either side.
    """
    if not len(motion) or not len(audio):
        raise UnscorableError(f"no beats: {len(motion)} of motion, {len(audio)} of sound")
    nearest = np.abs(motion[:, None] - audio[None, :]).min(axis=1)
    return float(np.exp(-np.square(nearest) / (2 * sigma**2)).mean())


def alignment_excess(motion: np.ndarray, audio: np.ndarray, seconds: float, seed: int = 0) -> float:
    """`beat_alignment` less its mean against the audio rotated by random shifts within a clip of `seconds`."""
    shifts = np.random.default_rng(seed).uniform(0, seconds, SHIFTS)
    rotated = [beat_alignment(motion, (audio + shift) % seconds) for shift in shifts]
    return beat_alignment(motion, audio) - float(np.mean(rotated))
