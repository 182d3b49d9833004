"""Mel-frequency cepstra as SyncNet was trained on: the defaults of python_speech_features, in one vectorised pass."""

from functools import cache

import numpy as np
from scipy.fft import dct

from common.constants import AUDIO_RATE

COEFFICIENTS = 13
_WINDOW, _HOP = 400, 160  # 25 ms, 10 ms
_FFT, _FILTERS, _LIFTER, _PRE_EMPHASIS = 512, 26, 22, 0.97
_TINY = np.finfo(float).eps  # stands for zero under a logarithm


def mfcc(wave: np.ndarray) -> np.ndarray:
    """Audio (N,) float in [-1, 1] at 16 kHz -> cepstra (13, n) float32, 100 columns per second.

    n = 1 + ceil((N - 400) / 160), the last column padded with zeros; coefficient 0 is the log energy. Computed on the
    16-bit integer scale, as from a wav file. Source: python_speech_features 0.6, `mfcc` with its defaults.
    """
    samples = np.clip(np.rint(np.asarray(wave, np.float64) * 32768), -32768, 32767)
    emphasised = np.append(samples[:1], samples[1:] - _PRE_EMPHASIS * samples[:-1])
    columns = 1 + max(0, -(-(len(emphasised) - _WINDOW) // _HOP))
    padded = np.pad(emphasised, (0, (columns - 1) * _HOP + _WINDOW - len(emphasised)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT
    log_mel = np.log(_no_zeros(power @ _mel_filters().T))
    cepstra = dct(log_mel, type=2, axis=1, norm="ortho")[:, :COEFFICIENTS]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / _LIFTER)
    cepstra[:, 0] = np.log(_no_zeros(power.sum(axis=1)))
    return cepstra.T.astype(np.float32)


@cache
def _mel_filters() -> np.ndarray:
    """Triangles (26, 257) evenly spaced in mel from 0 to 8 kHz, their corners rounded down to FFT bins."""
    mel = np.linspace(0, 2595 * np.log10(1 + AUDIO_RATE / 2 / 700), _FILTERS + 2)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / AUDIO_RATE)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(_FFT // 2 + 1)
    rising = (bins - low) / np.maximum(middle - low, 1)
    falling = (high - bins) / np.maximum(high - middle, 1)
    return np.where(bins < middle, np.clip(rising, 0, None), np.clip(falling, 0, None)) * (bins >= low)


def _no_zeros(values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, _TINY, values)
