"""Synthesised voice of known phones: script -> phone timeline -> audio and lip track.

Tables live on a control grid of 200 Hz. `G` = grid steps, `N` = samples at 16 kHz, `P` = phones.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from common.constants import AUDIO_RATE, FPS

GRID_RATE = 200
_GRID_PER_FRAME = GRID_RATE // FPS
_SAMPLES_PER_GRID = AUDIO_RATE // GRID_RATE

# Columns: F1 F2 F3 in Hz, voicing, noise bands (3.8-7.5, 1.8-4.2, 0.8-7 kHz), lip opening, spread, teeth, shortest and
# longest duration in ms. Silence comes first; vowels next, so that slices of the order name the classes.
_PHONE_TABLE = {
    "_": (500, 1500, 2500, 0.00, 0.00, 0.00, 0.00, 0.00, 0.50, 0.0, 80, 200),
    "a": (800, 1250, 2600, 1.00, 0.00, 0.00, 0.00, 1.00, 0.50, 0.3, 90, 200),
    "e": (500, 1900, 2600, 0.95, 0.00, 0.00, 0.00, 0.60, 0.80, 0.6, 90, 180),
    "i": (290, 2300, 3000, 0.90, 0.00, 0.00, 0.00, 0.35, 1.00, 0.8, 80, 180),
    "o": (480, 850, 2500, 0.95, 0.00, 0.00, 0.00, 0.70, 0.10, 0.1, 90, 190),
    "u": (310, 750, 2300, 0.90, 0.00, 0.00, 0.00, 0.35, 0.00, 0.0, 80, 180),
    "@": (520, 1450, 2500, 0.80, 0.00, 0.00, 0.00, 0.45, 0.50, 0.3, 60, 120),
    "m": (260, 1000, 2200, 0.35, 0.00, 0.00, 0.00, 0.00, 0.50, 0.0, 70, 120),
    "b": (280, 800, 2200, 0.15, 0.00, 0.00, 0.05, 0.00, 0.45, 0.0, 60, 100),
    "f": (400, 1400, 2500, 0.00, 0.12, 0.06, 0.25, 0.12, 0.55, 0.9, 80, 130),
    "s": (400, 1700, 2600, 0.00, 0.60, 0.08, 0.00, 0.15, 0.80, 1.0, 80, 150),
    "S": (400, 1700, 2400, 0.00, 0.12, 0.60, 0.00, 0.25, 0.15, 0.8, 80, 150),
    "t": (400, 1800, 2600, 0.00, 0.30, 0.10, 0.15, 0.25, 0.60, 0.7, 50, 80),
    "n": (280, 1700, 2600, 0.40, 0.00, 0.00, 0.00, 0.30, 0.60, 0.5, 60, 110),
    "l": (380, 1200, 2700, 0.60, 0.00, 0.00, 0.00, 0.45, 0.60, 0.4, 60, 110),
}
PHONES = tuple(_PHONE_TABLE)
N_PHONES = len(PHONES)
_TABLE = np.array(list(_PHONE_TABLE.values()), dtype=np.float64)
_FORMANTS, _VOICING, _NOISE, _LIPS, _MS = _TABLE[:, :3], _TABLE[:, 3], _TABLE[:, 4:7], _TABLE[:, 7:10], _TABLE[:, 10:12]
_VOWELS, _CONSONANTS = slice(1, 7), slice(7, N_PHONES)
_NOISE_BANDS = ((3800, 7500), (1800, 4200), (800, 7000))
_BANDWIDTHS = np.array([90.0, 120.0, 180.0])


@dataclass(frozen=True)
class Speaker:
    """What makes a voice recognisable: pitch in Hz, vocal-tract scale, spectral tilt, breath noise, speaking rate."""

    pitch: float
    formant_scale: float
    tilt: float
    breath: float
    rate: float


@dataclass(frozen=True)
class Speech:
    """Audio with its truth.

    Attributes: `audio` (N,) float32 at 16 kHz; `phones` (T, P) share of each phone in a 40 ms frame, rows sum to one;
    `lips` (T, 3) opening, spread and teeth in 0..1 at the middle of each frame; `stress` (T,) 0..1.
    """

    audio: np.ndarray
    phones: np.ndarray
    lips: np.ndarray
    stress: np.ndarray


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """Draw one voice; the ranges cover what is heard as low men's to high women's voices."""
    return Speaker(
        pitch=float(np.exp(rng.uniform(np.log(90), np.log(240)))),
        formant_scale=float(rng.uniform(0.88, 1.15)),
        tilt=float(rng.uniform(0.6, 1.1)),
        breath=float(rng.uniform(0.0, 0.04)),
        rate=float(rng.uniform(0.85, 1.2)),
    )


def speak(speaker: Speaker, frames: int, rng: np.random.Generator) -> Speech:
    """Let `speaker` say a random script for exactly `frames` video frames of 40 ms."""
    steps = frames * _GRID_PER_FRAME
    one_hot, stress = _timeline(speaker, steps, rng)
    acoustic = gaussian_filter1d(one_hot, 0.011 * GRID_RATE, axis=0, mode="nearest")
    # Lips are slower than the rest of the mouth: coarticulation of 25 ms, short enough for m and b to close.
    visible = gaussian_filter1d(one_hot, 0.025 * GRID_RATE, axis=0, mode="nearest")
    return Speech(
        audio=_synthesise(speaker, acoustic, stress, rng),
        phones=acoustic.reshape(frames, _GRID_PER_FRAME, N_PHONES).mean(1).astype(np.float32),
        lips=(visible @ _LIPS)[_GRID_PER_FRAME // 2 :: _GRID_PER_FRAME].astype(np.float32),
        stress=stress[_GRID_PER_FRAME // 2 :: _GRID_PER_FRAME].astype(np.float32),
    )


def silence(frames: int) -> Speech:
    """The truth of saying nothing: zero audio, closed lips, for `frames` video frames."""
    phones = np.zeros((frames, N_PHONES), np.float32)
    phones[:, 0] = 1
    lips = np.repeat(_LIPS[:1], frames, axis=0).astype(np.float32)
    return Speech(np.zeros(frames * 640, np.float32), phones, lips, np.zeros(frames, np.float32))


def music(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Steady chords with a drum: audio that is no speech, (frames*640,) float32 at 16 kHz."""
    seconds = np.arange(frames * 640) / AUDIO_RATE
    beat = float(rng.uniform(0.4, 0.6))
    root = 110 * 2 ** (rng.integers(0, 12) / 12)
    steps = np.array([0, 5, 7, 3])[(seconds / (4 * beat)).astype(int) % 4]
    mix = np.zeros_like(seconds)
    for interval in (0, 4, 7, 12):
        phase = 2 * np.pi * np.cumsum(root * 2 ** ((steps + interval) / 12)) / AUDIO_RATE
        mix += np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)
    drum = np.exp(-(seconds % beat) * 40) * rng.standard_normal(len(seconds))
    mix = 0.12 * mix + 0.25 * drum
    return (0.5 * mix / np.abs(mix).max()).astype(np.float32)


def _timeline(speaker: Speaker, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Words of consonant-vowel syllables with pauses between: one-hot (G, P) and stress (G,)."""
    one_hot, stress = np.zeros((steps, N_PHONES)), np.zeros(steps)
    position = 0

    def put(phone: int, stretch: float, loud: bool) -> None:
        nonlocal position
        low, high = _MS[phone]
        length = max(4, round(rng.uniform(low, high) * stretch / speaker.rate * GRID_RATE / 1000))
        one_hot[position : position + length, phone] = 1
        if loud:
            stress[position : position + length] = 1
        position += length

    put(0, rng.uniform(0.5, 1.5), False)
    while position < steps:
        for _ in range(rng.integers(2, 6)):
            loud = bool(rng.random() < 0.35)
            put(int(rng.integers(_CONSONANTS.start, _CONSONANTS.stop)), 1.0, loud)
            put(int(rng.integers(_VOWELS.start, _VOWELS.stop)), 1.3 if loud else 1.0, loud)
            if rng.random() < 0.3:
                put(int(rng.integers(_CONSONANTS.start, _CONSONANTS.stop)), 1.0, loud)
        if rng.random() < 0.5:
            put(0, rng.uniform(1.0, 2.0), False)
    return one_hot, gaussian_filter1d(stress, 0.04 * GRID_RATE, mode="nearest")


def _synthesise(speaker: Speaker, acoustic: np.ndarray, stress: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Additive synthesis: harmonics of a moving pitch under three resonances, plus three bands of noise."""
    samples = len(acoustic) * _SAMPLES_PER_GRID
    drift = gaussian_filter1d(rng.standard_normal(len(acoustic)), 0.15 * GRID_RATE, mode="nearest")
    pitch = speaker.pitch * (1 + 0.35 * drift + 0.15 * stress)
    phase = 2 * np.pi * np.cumsum(_to_samples(pitch, samples)) / AUDIO_RATE
    formants = acoustic @ _FORMANTS * speaker.formant_scale
    loudness = (acoustic @ _VOICING) * (1 + 0.4 * stress)
    voiced = np.zeros(samples)
    # sin(k x) by the Chebyshev recurrence: one sine and one cosine per sample, whatever the number of harmonics.
    before, current, twice_cosine = np.zeros(samples), np.sin(phase), 2 * np.cos(phase)
    for harmonic in range(1, int(5000 / speaker.pitch) + 1):
        gain = _resonance(harmonic * pitch, formants) * loudness * harmonic**-speaker.tilt
        voiced += _to_samples(gain, samples) * current
        before, current = current, twice_cosine * current - before
    mix = voiced
    for band, weights in zip(_noise_bands(samples, rng), (acoustic @ _NOISE).T, strict=True):
        mix = mix + band * _to_samples(weights + speaker.breath * loudness, samples)
    return (0.6 * mix / max(float(np.abs(mix).max()), 1e-6)).astype(np.float32)


def _resonance(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Gain of three parallel resonances at `frequency` (G,) for formant tracks (G, 3)."""
    distance = (frequency[:, None] - formants) / _BANDWIDTHS
    return (np.array([1.0, 0.7, 0.35]) / (1 + distance**2)).sum(1) + 0.02


def _noise_bands(samples: int, rng: np.random.Generator) -> list[np.ndarray]:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / AUDIO_RATE)
    return [np.fft.irfft(spectrum * ((frequency > low) & (frequency < high)), samples) for low, high in _NOISE_BANDS]


def _to_samples(track: np.ndarray, samples: int) -> np.ndarray:
    grid = (np.arange(len(track)) + 0.5) * _SAMPLES_PER_GRID
    return np.interp(np.arange(samples), grid, track)
