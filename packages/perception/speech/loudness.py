"""Loudness: programme loudness of ITU-R BS.1770-4, and silence at the ends."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import lfilter

from common.constants import AUDIO_RATE

BLOCK_SECONDS, BLOCKS_PER_SECOND = 0.4, 10
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below the mean of what passes the first gate
STEP = 320  # samples, 20 ms
SILENCE_DB, AUDIBLE_BELOW_PEAK_DB = -50.0, 35.0


def integrated_loudness(wave: np.ndarray, rate: int = AUDIO_RATE) -> float | None:
    """Loudness in LUFS of mono audio (n,) in [-1, 1]; None for less than 0.4 s or for silence (below -70 LUFS)."""
    block = round(BLOCK_SECONDS * rate)
    if len(wave) < block:
        return None
    weighted = np.asarray(wave, np.float64)
    for numerator, denominator in k_weighting(rate):
        weighted = lfilter(numerator, denominator, weighted)
    power = np.square(sliding_window_view(weighted, block)[:: rate // BLOCKS_PER_SECOND]).mean(axis=1)
    power = power[_lufs(power) > ABSOLUTE_GATE]
    if not len(power):
        return None
    return float(_lufs(power[_lufs(power) > _lufs(power.mean()) + RELATIVE_GATE].mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))


def k_weighting(rate: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator of the two filters at any rate: a shelf (the head) and a high pass.

    The standard gives them at 48 kHz; these are the analogue filters behind, bilinearly transformed.
    """
    frequency, gain, quality = 1681.974450955533, 3.999843853973347, 0.7071752369554196
    k, high = np.tan(np.pi * frequency / rate), 10 ** (gain / 20)
    middle, scale = high**0.4996667741545416, 1 + k / quality + k * k
    shelf = np.array([high + middle * k / quality + k * k, 2 * (k * k - high), high - middle * k / quality + k * k])
    poles = np.array([scale, 2 * (k * k - 1), 1 - k / quality + k * k])
    frequency, quality = 38.13547087602444, 0.5003270373238773
    k = np.tan(np.pi * frequency / rate)
    low = np.array([1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k])
    return (shelf / scale, poles / scale), (np.array([1.0, -2.0, 1.0]), low / low[0])


def silent_ends(wave: np.ndarray, rate: int = AUDIO_RATE) -> tuple[float, float]:
    """Seconds without audible audio at the beginning and at the end of mono audio (n,); both whole when all is silent.

    Audible is what lies above -50 dB of full scale and within 35 dB of the loud parts, in steps of 20 ms.
    """
    step = round(STEP * rate / AUDIO_RATE)
    blocks = np.asarray(wave[: len(wave) // step * step], np.float64).reshape(-1, step)
    level = 10 * np.log10(np.maximum(np.square(blocks).mean(axis=1), 1e-12))
    loud = np.percentile(level, 95) if len(level) else SILENCE_DB
    active = np.flatnonzero(level > max(SILENCE_DB, loud - AUDIBLE_BELOW_PEAK_DB))
    if not len(active):
        return len(wave) / rate, len(wave) / rate
    return int(active[0]) * step / rate, len(wave) / rate - (int(active[-1]) + 1) * step / rate
