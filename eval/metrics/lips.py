"""Lip motion in silence: which frames of the audio are silent and how far the mouth moves in them; Sync-C of speech.

Legend: T frames at 25 fps, n changes of the mouth (`perception.sync.lips.mouth_changes`), of which entry i compares the
frames i and i + STEP of the track of the face.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.constants import AUDIO_RATE, FPS
from eval.features.records import UnscorableError
from perception.speech.detect import AUDIBLE_BELOW_PEAK_DB, SILENCE_DB, speech_at
from perception.sync.lips import STEP

LEVELS_PER_FRAME = 4  # 10 ms each, to notice audio that begins within a frame
ABOVE_NOISE_DB = 6.0
SHORTEST_END = FPS  # frames of a pause before or after all speech; curation shifts audio by up to 15
NOISE_BELOW_PEAK_DB = 20.0  # room noise is at least this far below the peak


def quiet_frames(wave: np.ndarray) -> np.ndarray:
    """Frames (T,) bool of audio (T*640,) at 16 kHz that are silent and lie in a pause of 0.3 s or more.

    The absence of voice is not enough: s, f and t have none, and lips shape them at either end of every pause. Loud is
    what reaches the highest of -50 dB of full scale, 35 dB below the loudest and 6 dB above the quietest tenth; in
    noise less than 20 dB below the voice no frame is silent. A pause before the first or after the last voice counts
    from one second on: shorter ones may be words cut off, or audio that is missing because it was shifted into sync.
    """
    hop = AUDIO_RATE // FPS // LEVELS_PER_FRAME
    frames = len(wave) // (LEVELS_PER_FRAME * hop)
    if not frames:
        return np.zeros(0, bool)
    whole = wave[: frames * LEVELS_PER_FRAME * hop].astype(np.float64)
    power = np.square(whole).reshape(frames, LEVELS_PER_FRAME, hop).mean(axis=2)
    level = 10 * np.log10(power + 1e-12)
    peak, noise = (float(np.percentile(level, share)) for share in (95, 10))
    room = min(noise + ABOVE_NOISE_DB, peak - NOISE_BELOW_PEAK_DB)
    loud = level >= max(SILENCE_DB, peak - AUDIBLE_BELOW_PEAK_DB, room)
    return ~loud.any(axis=1) & _pauses(speech_at(wave, (np.arange(frames) + 0.5) / FPS))


def _pauses(speech: np.ndarray) -> np.ndarray:
    """Frames (T,) bool of pauses; those at either end are left out where they are shorter than a second."""
    pause, spoken = ~speech, np.flatnonzero(speech)
    if len(spoken) and spoken[0] < SHORTEST_END:
        pause[: spoken[0]] = False
    if len(spoken) and len(speech) - 1 - spoken[-1] < SHORTEST_END:
        pause[spoken[-1] :] = False
    return pause


def silent_lips(changes: np.ndarray, quiet: np.ndarray, start: int = 0) -> tuple[float, int]:
    """Median of the `changes` (n,) of a mouth whose frames are all `quiet` (T,), and their number.

    `start` is the frame that the first change begins with; frames beyond the end of the audio are left out. Drawn
    mouths at rest read 0.1 (0.2 at most while the head turns), talking ones 0.6. It measures motion, not whether the
    mouth is closed: one that flickers shut reads as moving, one that stays open as resting. Short clips have few pauses
    or none, and three changes say little. Raises UnscorableError without such frames.
    """
    frames = start + np.arange(len(changes) + STEP)
    still = np.concatenate([quiet, np.zeros(1, bool)])[np.minimum(frames, len(quiet))]
    silent = sliding_window_view(still, STEP + 1).all(axis=1) if len(changes) else np.zeros(0, bool)
    if not silent.any():
        raise UnscorableError("no silence: no pause of 0.3 s in which nothing is heard while the face is seen")
    return float(np.median(changes[silent])), int(silent.sum())


def confidence_of(by_window: np.ndarray, chosen: np.ndarray) -> float:
    """Sync-C from the distances (L, 2V + 1) of the `chosen` windows (L,) bool, those shifted past the ends left out.

    Raises UnscorableError where none is chosen.
    """
    windows, shifts = by_window.shape
    position = np.arange(windows)[:, None] + np.arange(shifts) - shifts // 2
    inside = (position >= 0) & (position < windows) & chosen[:, None]
    reached = inside.any(axis=0)
    if not reached.any():
        raise UnscorableError("no speech: nobody speaks while the face is seen")
    means = np.where(inside, by_window, 0).sum(axis=0)[reached] / inside.sum(axis=0)[reached]
    return float(np.median(means) - means.min())
