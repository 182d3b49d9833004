"""Lips in drawn pauses: resting mouths score below moving ones, and consonants are not silence."""

import numpy as np
import pytest

from eval.features.records import UnscorableError
from eval.metrics.lips import quiet_frames, silent_lips
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.figure import draw_identity, draw_motion, render
from miniature.world.voice import draw_speaker, silence, speak
from perception.faces.crop import crop_track
from perception.sync.lips import SIDE, mouth_changes

SPOKEN, PAUSE = 25, 20


def paused_clip(seed: int, resting: bool) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the mouth and quiet frames: a second of speech, 0.8 s of silence with the mouth closed or talking on,
    and another second."""
    rng = np.random.default_rng(seed)
    speaker, identity = draw_speaker(rng), draw_identity(rng)
    speech, pause = speak(speaker, 2 * SPOKEN + PAUSE, rng), slice(SPOKEN, SPOKEN + PAUSE)
    wave, lips = speech.audio.copy(), speech.lips.copy()
    wave[pause.start * 640 : pause.stop * 640] = 0
    if resting:
        lips[pause] = silence(PAUSE).lips
    drawing = render(identity, draw_motion(speech.stress, rng), lips, "face")
    return mouth_changes(crop_track(drawing.frames, drawing.boxes, SIDE)), quiet_frames(wave)


@pytest.mark.parametrize("seed", range(4))
def test_a_mouth_at_rest_in_a_pause_moves_less_than_one_that_talks(seed: int) -> None:
    (rests, n), (talks, _) = (silent_lips(*paused_clip(seed, resting)) for resting in (True, False))
    assert n >= PAUSE - 6 and rests < 0.2 and talks > 2 * rests and talks > 0.35


def test_pauses_of_drawn_speakers_read_as_the_resting_mouth() -> None:
    """What is not voiced is no silence: consonants at either end of a pause read 0.5."""
    values = []
    for seed in (4, 5, 9):  # that pause
        clip = draw_clip(HELD_OUT_SEED + seed, 8.0)
        quiet = quiet_frames(clip.audio)
        assert clip.phones[quiet, 0].mean() > 0.9
        values.append(silent_lips(mouth_changes(crop_track(clip.frames, clip.boxes, SIDE)), quiet)[0])
    assert np.mean(values) < 0.15 and max(values) < 0.2


def test_quiet_is_a_pause_without_any_audio() -> None:
    t = np.arange(48_000) / 16_000
    voice = 0.3 * np.sign(np.sin(2 * np.pi * 150 * t)) * ((t < 1) | (t >= 2))
    hiss = 0.1 * np.random.default_rng(0).standard_normal(len(t)) * ((t >= 1) & (t < 1.2))
    room = 0.003 * np.random.default_rng(1).standard_normal(len(t))
    for noise in (0, room):
        quiet = quiet_frames((voice + hiss + noise).astype(np.float32))
        assert quiet.shape == (75,) and quiet[31:49].all() and not quiet[:30].any() and not quiet[51:].any()
    assert not quiet_frames((voice + 50 * room).astype(np.float32)).any()  # too loud a room to hear a pause in
    for seconds, counts in ((0.8, False), (1.2, True)):  # a pause at the end may be a word cut off, or sound moved away
        silence_at_end = np.where(t < 3 - seconds, 0.3 * np.sign(np.sin(2 * np.pi * 150 * t)), 0).astype(np.float32)
        assert quiet_frames(silence_at_end)[-15:].all() == quiet_frames(silence_at_end[::-1])[:15].all() == counts
        assert quiet_frames(silence_at_end).any() == quiet_frames(silence_at_end[::-1]).any() == counts
    assert quiet_frames(np.zeros(6400, np.float32)).all() and quiet_frames(np.zeros(0, np.float32)).shape == (0,)


def test_a_change_counts_where_all_its_frames_are_quiet() -> None:
    quiet = np.array([False, True, True, True, True, False, False])
    changes = np.array([9.0, 1.0, 3.0, 9.0, 9.0])  # from frame to the next but one: 1 to 3 and 2 to 4 are quiet
    assert silent_lips(changes, quiet) == (2.0, 2)
    assert silent_lips(changes, np.ones(5, bool), start=2) == (9.0, 1)  # the sound ends with frame 4
    with pytest.raises(UnscorableError, match="no silence"):
        silent_lips(changes, np.zeros(7, bool))
    with pytest.raises(UnscorableError, match="no silence"):
        silent_lips(np.zeros(0), quiet)
