"""Audio features at the video's rate, and windows of them."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from omniavatar.encoders.audio import AudioEncoder

Features = Literal["wav2vec2", "logmel"]
_BANDS, _PER_FRAME, _WINDOW, _FFT = 26, 2, 400, 512


def audio_features(wave: np.ndarray, kind: Features, encoder: AudioEncoder | None = None) -> Tensor:
    """Mono 16 kHz audio (N,) -> (ceil(N / 640), D): states of all layers of wav2vec2, or a log-mel spectrogram."""
    if kind == "wav2vec2":
        if encoder is None:
            raise ValueError("wav2vec2 features need the audio encoder that they are of.")
        return encoder.encode(wave)[:, encoder.hidden_size :]  # the first block repeats the last
    return log_mel(wave)


def log_mel(wave: np.ndarray) -> Tensor:
    """Mono 16 kHz audio (N,) -> (T, 52): 26 bands, twice per frame; needs no weights."""
    frames = -(-len(wave) // SAMPLES_PER_FRAME)
    hop = SAMPLES_PER_FRAME // _PER_FRAME
    samples = torch.from_numpy(np.asarray(wave, np.float32))
    # Each window lies around the middle of its half frame.
    before = (_WINDOW - hop) // 2
    padded = F.pad(samples, (before, frames * SAMPLES_PER_FRAME - len(samples) + before))
    windows = padded.unfold(0, _WINDOW, hop) * torch.hann_window(_WINDOW)
    power = torch.fft.rfft(windows, _FFT).abs().square()
    return (power @ _mel_bands() + 1e-4).log().reshape(frames, -1)


def _mel_bands() -> Tensor:
    """Triangles (257, 26) evenly spaced in mel from 60 Hz to 7.6 kHz."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, 7600.0))
    corners = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, AUDIO_RATE / 2, _FFT // 2 + 1)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))


def stacked(features: Tensor, reach: int) -> Tensor:
    """Features (T, D) with those of `reach` frames before and after -> (T, (2 reach + 1) D); ends are repeated."""
    padded = torch.cat([features[:1].expand(reach, -1), features, features[-1:].expand(reach, -1)])
    return padded.unfold(0, 2 * reach + 1, 1).flatten(1)
