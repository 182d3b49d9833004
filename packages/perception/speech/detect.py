"""Speech and music: by a voice detector's probabilities where there is one, else from energy and pitch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import binary_closing, gaussian_filter1d

from common.constants import AUDIO_RATE
from perception.speech import silero

if TYPE_CHECKING:
    from perception.speech.silero import VoiceDetector

HOP = 256  # 16 ms
WINDOW = 1024  # 64 ms: partials of a voice or an instrument stand apart in the spectrum
FLOOR_DB = -120.0

SILENCE_DB = -50.0  # full scale; below this nobody is heard
AUDIBLE_BELOW_PEAK_DB = 35.0
PITCH_LAGS = (40, 229)  # samples: 400 Hz down to 70 Hz
VOICED = 0.5  # normalised autocorrelation at the pitch
PAUSE_SECONDS = 0.3  # consonants and pauses up to it belong to the voice around them

PARTIALS = 12  # strongest spectral peaks looked at in a frame
STEADY_CENTS = 8.0  # a played note stays this close to its pitch, a spoken one hardly ever
STEADY_FRAMES = 16  # for at least 0.26 s
CLIPPED = 0.999

# Of a voice detector's probabilities.
SPOKEN, CERTAIN = 0.5, 0.9
LOUD, PAUSE = 0.8, 0.2  # frames that the level of the voice, and of what lies behind it, are taken from
LEAST_FRAMES = 5  # of each
LEAST_POWER = 1e-12


@dataclass(frozen=True)
class SpeechStats:
    """What a clip's audio is made of.

    `speech_pct` 0..100 share of the time with speech; `snr_db` level of the voice over what is heard in its pauses,
    None without enough of either (without a detector: over the quietest tenth, a lower bound where nobody pauses);
    `certainty` 0..1 share of the speech that the detector is sure of, which music around a voice lowers, None without a
    detector or without speech; `music_ratio` 0..1 share of the tonal energy held at one pitch; `clipping_pct` 0..100
    share of samples at full scale; `silent` when nothing reaches -50 dB of full scale.
    """

    speech_pct: float
    snr_db: float | None
    music_ratio: float
    clipping_pct: float
    silent: bool
    certainty: float | None = None


def speech_activity(wave: np.ndarray, detector: "VoiceDetector | None" = None) -> SpeechStats:
    """Measure mono audio (n,) float32 in [-1, 1] at 16 kHz; shorter than 64 ms counts as silent.

    Without a detector a voice is audible audio with a pitch of 70 to 400 Hz (peak of the autocorrelation). Short breaks
    belong to the voice either way. Notes have a pitch, too: music is told from speech by partials that stay within 8
    cents for 0.26 s or more, as a voice glides.
    """
    clipping = 100.0 * float(np.mean(np.abs(wave) >= CLIPPED)) if len(wave) else 0.0
    spectrum = _power_spectrum(wave) if len(wave) >= WINDOW else np.zeros((1, WINDOW // 2 + 1))
    level = 10 * np.log10(spectrum.sum(axis=1) + 10 ** (FLOOR_DB / 10))
    peak, noise = float(np.percentile(level, 95)), float(np.percentile(level, 10))
    if peak < SILENCE_DB:
        return SpeechStats(0.0, None if detector else 0.0, 0.0, clipping, True)
    music = _steady_share(spectrum)
    if detector is not None:
        voice = detector.probabilities(wave)
        spoken = voice > SPOKEN
        certainty = float(np.sum(voice > CERTAIN) / np.sum(spoken)) if spoken.any() else None
        speech = _without_pauses(spoken, silero.HOP)
        return SpeechStats(
            100.0 * float(speech.mean()), _level_over_pauses(wave, voice), music, clipping, False, certainty
        )
    voiced = _voiced(spectrum, level, peak)
    loud = float(10 * np.log10(np.mean(10 ** (level[voiced] / 10)))) if voiced.any() else noise
    return SpeechStats(100.0 * float(_without_pauses(voiced).mean()), loud - noise, music, clipping, False)


def _level_over_pauses(wave: np.ndarray, voice: np.ndarray) -> float | None:
    """Level in dB of the voice alone over what is heard in its pauses; None for less than 0.16 s of either."""
    padded = np.pad(np.asarray(wave, np.float64), (0, len(voice) * silero.HOP - len(wave)))
    power = np.square(padded).reshape(-1, silero.HOP).mean(axis=1)
    loud, pauses = power[voice > LOUD], power[voice < PAUSE]
    if min(len(loud), len(pauses)) < LEAST_FRAMES:
        return None
    background = max(float(np.median(pauses)), LEAST_POWER)
    # The voice comes on top of the background; where it is lost in it, -10 dB stands for any less.
    return float(10 * np.log10(max((float(loud.mean()) - background) / background, 0.1)))


def speech_at(wave: np.ndarray, seconds: np.ndarray, detector: "VoiceDetector | None" = None) -> np.ndarray:
    """Whether somebody speaks at each of `seconds` (n,) of mono audio at 16 kHz, by the rule of `speech_activity`.

    What is not speech is thus a pause of 0.3 s or more; beyond the ends of the audio nobody speaks.
    """
    if len(wave) < WINDOW:
        return np.zeros(len(seconds), bool)
    if detector is not None:
        speech = _without_pauses(detector.probabilities(wave) > SPOKEN, silero.HOP)
        window = np.floor(np.asarray(seconds) * AUDIO_RATE / silero.HOP).astype(int)
    else:
        spectrum = _power_spectrum(wave)
        level = 10 * np.log10(spectrum.sum(axis=1) + 10 ** (FLOOR_DB / 10))
        speech = _without_pauses(_voiced(spectrum, level, float(np.percentile(level, 95))))
        window = np.round((np.asarray(seconds) * AUDIO_RATE - WINDOW / 2) / HOP).astype(int)
    inside = (np.asarray(seconds) >= 0) & (np.asarray(seconds) < len(wave) / AUDIO_RATE)
    return inside & speech[np.clip(window, 0, len(speech) - 1)]


def _voiced(spectrum: np.ndarray, level: np.ndarray, peak: float) -> np.ndarray:
    """Audible frames with a voice's pitch."""
    return (level > max(peak - AUDIBLE_BELOW_PEAK_DB, SILENCE_DB)) & (_periodicity(spectrum) > VOICED)


def _without_pauses(voiced: np.ndarray, hop: int = HOP) -> np.ndarray:
    pause = int(PAUSE_SECONDS * AUDIO_RATE / hop)
    return binary_closing(np.pad(voiced, pause), np.ones(pause + 1))[pause:-pause]


def _power_spectrum(wave: np.ndarray) -> np.ndarray:
    """Power (frames, bins) whose sum over the bins is the mean square of the frame."""
    window = np.hanning(WINDOW)
    frames = sliding_window_view(np.asarray(wave, np.float64), WINDOW)[::HOP] * window
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return 2 * power / (WINDOW * np.square(window).sum())


def _periodicity(spectrum: np.ndarray) -> np.ndarray:
    """Height (frames,) of the autocorrelation's peak at a voice's pitch: near 1 for a vowel, near 0 for noise.

    The window's own autocorrelation is divided out (Boersma 1993).
    """
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(WINDOW), 2 * WINDOW)) ** 2)
    correlation = np.fft.irfft(spectrum, axis=1)[:, : PITCH_LAGS[1]]
    normalised = correlation / np.maximum(correlation[:, :1], 1e-20) / (window[: PITCH_LAGS[1]] / window[0])
    return normalised[:, PITCH_LAGS[0] :].max(axis=1)


def _steady_share(spectrum: np.ndarray) -> float:
    """Share of the energy in spectral peaks that belongs to peaks holding their pitch."""
    cents, power = _partials(spectrum)
    begun, age = cents[0], np.ones(PARTIALS, int)  # pitch at which each partial began, frames it has lived so far
    ages, parents = [age], []
    for now, before in zip(cents[1:], cents[:-1], strict=True):
        strayed = np.abs(now[:, None] - begun[None, :]) > STEADY_CENTS
        distance = np.where(strayed, np.inf, np.abs(now[:, None] - before[None, :]))
        nearest = distance.argmin(axis=1)
        lives = distance[np.arange(PARTIALS), nearest] < STEADY_CENTS
        begun, age = np.where(lives, begun[nearest], now), np.where(lives, age[nearest] + 1, 1)
        ages.append(age)
        parents.append(np.where(lives, nearest, -1))
    steady = _whole_lives(ages, parents) >= STEADY_FRAMES
    total = float(power.sum())
    return float(power[steady].sum()) / total if total > 0 else 0.0


def _whole_lives(ages: list[np.ndarray], parents: list[np.ndarray]) -> np.ndarray:
    """Frames (frames, PARTIALS) that each partial lives in all: a note counts from its first frame on."""
    lives = np.stack(ages)
    for number in range(len(lives) - 1, 0, -1):
        heirs = np.flatnonzero(parents[number - 1] >= 0)
        np.maximum.at(lives[number - 1], parents[number - 1][heirs], lives[number][heirs])
    return lives


def _partials(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pitch in cents and power, each (frames, PARTIALS), of the strongest peaks; power 0 where there are fewer."""
    decibel = 10 * np.log10(spectrum + 10 ** (FLOOR_DB / 10))
    below, centre, above = decibel[:, :-2], decibel[:, 1:-1], decibel[:, 2:]
    # A partial stands clear of the spectrum around it; ripples of noise do not.
    clear = centre > gaussian_filter1d(decibel, 6, axis=1)[:, 1:-1] + 6
    peak = (centre > below) & (centre >= above) & clear
    strength = np.where(peak, spectrum[:, 1:-1], 0)
    best = np.argpartition(-strength, PARTIALS, axis=1)[:, :PARTIALS]
    rows = np.arange(len(spectrum))[:, None]
    low, mid, high = below[rows, best], centre[rows, best], above[rows, best]
    curve = np.where(peak[rows, best], low - 2 * mid + high, -1.0)
    # The vertex of a parabola through the peak and its neighbours gives the pitch far finer than a bin.
    offset = np.clip(0.5 * (low - high) / curve, -0.5, 0.5)
    bins = best + 1 + offset
    return 1200 * np.log2(np.maximum(bins, 0.5)), strength[rows, best]
