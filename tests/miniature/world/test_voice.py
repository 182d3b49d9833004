import numpy as np
import pytest

from miniature.world.voice import N_PHONES, PHONES, draw_speaker, music, silence, speak


def _speech(seed: int = 3, frames: int = 100):
    rng = np.random.default_rng(seed)
    return speak(draw_speaker(rng), frames, rng)


def test_shapes_and_ranges():
    speech = _speech()
    assert speech.audio.shape == (100 * 640,) and speech.audio.dtype == np.float32
    assert speech.phones.shape == (100, N_PHONES) and np.allclose(speech.phones.sum(1), 1, atol=1e-5)
    assert speech.lips.shape == (100, 3) and speech.lips.min() >= 0 and speech.lips.max() <= 1
    assert np.abs(speech.audio).max() == pytest.approx(0.6, abs=1e-3)


def test_same_seed_same_samples_other_seed_others():
    assert np.array_equal(_speech(5).audio, _speech(5).audio)
    assert not np.array_equal(_speech(5).audio, _speech(6).audio)


def test_lips_close_on_m_and_b_and_open_on_a():
    speech = _speech(frames=1500)
    opening = speech.lips[:, 0]
    strongest = speech.phones.argmax(1)
    clear = speech.phones.max(1) > 0.95
    assert opening[clear & (strongest == PHONES.index("a"))].mean() > 0.8
    for closed in "mb":
        assert opening[clear & (strongest == PHONES.index(closed))].mean() < 0.25


def test_sound_is_loud_where_a_vowel_is_spoken_and_quiet_in_pauses():
    speech = _speech(frames=1000)
    loudness = np.sqrt(np.square(speech.audio.reshape(-1, 640)).mean(1))
    vowels, pauses = speech.phones[:, 1:7].sum(1) > 0.95, speech.phones[:, 0] > 0.95
    assert vowels.sum() > 100 and pauses.sum() > 20
    assert loudness[vowels].mean() > 20 * loudness[pauses].mean()


def test_pitch_of_the_sound_is_the_speakers():
    rng = np.random.default_rng(11)
    speaker = draw_speaker(rng)
    speech = speak(speaker, 500, rng)
    middle = speech.audio[np.repeat(speech.phones[:, 1:7].sum(1) > 0.99, 640)]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    power = np.convolve(spectrum**2, np.ones(200), mode="same")
    frequency = np.fft.rfftfreq(len(middle), 1 / 16000)
    # Nothing below the fundamental: 5 % of the energy is reached only near the pitch.
    rising = np.cumsum(power) / power.sum()
    assert frequency[np.searchsorted(rising, 0.02)] > 0.6 * speaker.pitch


def test_silence_says_nothing_with_closed_lips():
    quiet = silence(10)
    assert not quiet.audio.any() and (quiet.lips[:, 0] == 0).all() and (quiet.phones[:, 0] == 1).all()


def test_music_is_sound_of_the_right_length():
    assert music(50, np.random.default_rng(0)).shape == (50 * 640,)
