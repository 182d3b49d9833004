"""Speech, music, noise and silence told apart on synthesised sound of known kind."""

import numpy as np
import pytest

from miniature.world.voice import draw_speaker, music, speak
from perception.speech.detect import speech_activity, speech_at

RATE = 16_000


def voice(seed: int, seconds: float = 3.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return speak(draw_speaker(rng), round(seconds * 25), rng).audio


def white(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def test_voices_are_speech_and_no_music() -> None:
    stats = [speech_activity(voice(seed)) for seed in range(16)]
    assert min(each.speech_pct for each in stats) > 55
    assert max(each.music_ratio for each in stats) < 0.3


def test_music_is_no_voice() -> None:
    ratios = [speech_activity(music(90, np.random.default_rng(seed))).music_ratio for seed in range(16)]
    assert min(ratios) > 0.42


def test_a_scale_of_plucked_notes_is_music_too() -> None:
    notes = []
    for step in (0, 2, 4, 5, 7, 9, 11, 12):
        time = np.arange(RATE * 2 // 5) / RATE
        tone = sum(np.sin(2 * np.pi * 220 * 2 ** (step / 12) * k * time) / k for k in range(1, 6))
        notes.append(0.2 * tone * np.exp(-3 * time))
    assert speech_activity(np.concatenate(notes).astype(np.float32)).music_ratio > 0.5


@pytest.mark.parametrize("sound", [np.zeros(3 * RATE, np.float32), white(3, 1e-4), np.zeros(100, np.float32)])
def test_silence_is_silent(sound: np.ndarray) -> None:
    stats = speech_activity(sound)
    assert stats.silent and stats.speech_pct == 0


def test_noise_is_no_speech() -> None:
    stats = speech_activity(white(3, 0.1))
    assert not stats.silent
    assert stats.speech_pct < 5 and stats.snr_db < 3 and stats.music_ratio < 0.05


def test_half_a_clip_of_speech_is_half() -> None:
    sound = np.concatenate([voice(3, 4.0), white(4, 0.001)])
    whole, half = speech_activity(voice(3, 4.0)).speech_pct, speech_activity(sound).speech_pct
    assert half == pytest.approx(whole / 2, abs=6)


def test_snr_follows_the_noise_that_is_added() -> None:
    speech = np.concatenate([voice(3, 3.0), np.zeros(RATE, np.float32)])
    level = np.sqrt(np.mean(np.square(speech[: 3 * RATE])))
    measured = [speech_activity(speech + white(4, level * 10 ** (-snr / 20))).snr_db for snr in (10, 20, 30)]
    # The voiced frames are louder than the average of speech by the same few dB each time.
    assert np.diff(measured) == pytest.approx([10, 10], abs=1.5)
    assert measured[0] == pytest.approx(10, abs=4)


def test_clipping_is_counted() -> None:
    sound = voice(1)
    loud = np.clip(sound * 4, -1, 1)
    expected = 100 * np.mean(np.abs(loud) >= 0.999)
    assert speech_activity(loud).clipping_pct == pytest.approx(expected) and expected > 1
    assert speech_activity(sound).clipping_pct == 0


def test_speech_is_told_from_pauses_over_time() -> None:
    t = np.arange(48_000) / 16_000
    wave = (0.3 * np.sign(np.sin(2 * np.pi * 150 * t)) * ((t < 1) | (t >= 2))).astype(np.float32)
    spoken = speech_at(wave, np.array([-0.1, 0.1, 0.8, 1.2, 1.8, 2.2, 2.9, 3.1]))
    assert spoken.tolist() == [False, True, True, False, False, True, True, False]
    short = np.where((t >= 1) & (t < 1.2), 0, wave + (t >= 1) * 0.3 * np.sign(np.sin(2 * np.pi * 150 * t)) * (t < 2))
    assert speech_at(short.astype(np.float32), np.array([1.1])).all()  # a breath belongs to the voice around it
    assert not speech_at(np.zeros(300, np.float32), np.array([0.0])).any()
