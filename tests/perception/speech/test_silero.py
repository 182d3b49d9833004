"""Silero hears drawn and noisy voices and nothing else; blocks and state do not change what it hears."""

import numpy as np
import pytest

from miniature.world.clips import draw_clip
from perception.speech import silero
from perception.speech.detect import speech_activity, speech_at
from perception.speech.silero import VoiceDetector, load_voice_detector
from tests.perception.judged_material import judge, mixed, music, white, without_voice


@pytest.fixture(scope="module")
def detector() -> VoiceDetector:
    return load_voice_detector(judge("speech_detector"))


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    return [draw_clip(seed, 4.0).audio for seed in range(70, 78)]


def test_nobody_speaks_in_noise_tones_and_music(detector: VoiceDetector) -> None:
    heard = {name: speech_activity(wave, detector).speech_pct for name, wave in without_voice(6.0).items()}
    assert max(heard.values()) < 5, heard
    assert len([name for name, wave in without_voice(6.0).items() if speech_activity(wave).speech_pct > 60]) >= 3


def test_a_voice_is_heard_in_noise_that_hides_its_pitch(detector: VoiceDetector, voices: list[np.ndarray]) -> None:
    clean, noisy, pitch, levels = [], [], [], []
    times = np.arange(0.016, 3.9, 0.032)
    for seed, wave in enumerate(voices):
        loud = mixed(wave, white(4.0, seed), 0)
        clean.append(speech_at(wave, times, detector))
        noisy.append(speech_at(loud, times, detector))
        pitch.append(speech_at(loud, times))
        levels.append(speech_activity(mixed(wave, white(4.0, seed), 10), detector).snr_db or 10.0)
    assert np.mean(clean) > 0.7
    agreed = [float(np.mean(np.equal(clean, each))) for each in (noisy, pitch)]
    assert agreed[0] > agreed[1] + 0.1 and agreed[0] > 0.8, agreed
    assert np.median(levels) == pytest.approx(10, abs=1.5)


def test_music_beside_a_voice_makes_it_less_sure(detector: VoiceDetector, voices: list[np.ndarray]) -> None:
    alone = [speech_activity(wave, detector).certainty or 0 for wave in voices]
    loud = [speech_activity(mixed(wave, music(4.0, n), -6), detector).certainty or 0 for n, wave in enumerate(voices)]
    assert np.median(alone) > 0.9 > 0.8 > np.median(loud)


def test_blocks_are_one_run(detector: VoiceDetector, voices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    wave = voices[0][: 3 * 16_000 + 77]
    whole = detector.probabilities(wave)
    monkeypatch.setattr(silero, "BLOCK", 32)
    assert len(whole) == 94 and detector.probabilities(wave) == pytest.approx(whole, abs=1e-5)
    assert len(detector.probabilities(wave[:0])) == 0 and len(detector.probabilities(wave[:1])) == 1


def test_silence_and_next_to_nothing(detector: VoiceDetector) -> None:
    for wave in (np.zeros(16_000, np.float32), np.zeros(10, np.float32), np.zeros(0, np.float32)):
        stats = speech_activity(wave, detector)
        assert (stats.speech_pct, stats.snr_db, stats.certainty, stats.silent) == (0.0, None, None, True)
