"""Any channels are heard as speech, and no file is decoded that is longer than anybody meant."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.media import downmix
from common.media.audio import read_audio
from common.media.open import MediaError
from tests.common.media.test_open import wav

RATE = 48_000
VOICE = (np.sin(np.arange(RATE // 4) * 2 * np.pi * 220 / RATE) * 0.4).astype(np.float32)
QUIET = np.zeros_like(VOICE)


def write(path: Path, channels: list[np.ndarray], codec: str, layout: str) -> Path:
    samples = np.ascontiguousarray(np.stack(channels, axis=1), np.float32).reshape(1, -1)
    whole = av.AudioFrame.from_ndarray(samples, "flt", layout)
    whole.sample_rate, whole.pts, whole.time_base = RATE, 0, Fraction(1, RATE)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        resampler = av.AudioResampler(stream.format, layout, RATE, frame_size=stream.frame_size or 1024)
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decibels(path: Path) -> float:
    """Level of what is heard against the voice."""
    heard = read_audio(path, RATE)
    assert np.abs(heard).max() <= 1
    return float(10 * np.log10(max(1e-12, np.mean(heard[2000:10_000] ** 2)) / np.mean(VOICE[2000:10_000] ** 2)))


def with_voice(count: int, *places: int) -> list[np.ndarray]:
    return [VOICE if place in places else QUIET for place in range(count)]


@pytest.mark.parametrize("count", [8, 9, 16])
def test_channels_without_names_are_averaged_but_one_that_speaks_alone_is_heard(count: int, tmp_path: Path) -> None:
    assert decibels(wav(tmp_path / "all.wav", np.stack([VOICE] * count, 1), RATE)) == pytest.approx(0, abs=0.1)
    alone = wav(tmp_path / "one.wav", np.stack(with_voice(count, count - 1), 1), RATE)
    assert decibels(alone) == pytest.approx(0, abs=0.1)


def test_more_channels_than_can_be_mixed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="has 65 sound channels; expected at most 64") as error:
        read_audio(wav(tmp_path / "many.wav", np.zeros((100, 65)), RATE))
    assert error.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("name", "codec", "layout", "count"),
    [
        ("film.m4a", "aac", "7.1", 8),
        ("film.flac", "flac", "7.1", 8),
        ("film.opus", "libopus", "7.1", 8),
        ("film.ac3", "ac3", "5.1(side)", 6),
        ("film.mov", "pcm_s16le", "7.1.4", 12),
        ("film.mkv", "pcm_f32le", "hexadecagonal", 16),
    ],
)
def test_the_centre_is_heard_whole(name: str, codec: str, layout: str, count: int, tmp_path: Path) -> None:
    assert decibels(write(tmp_path / name, with_voice(count, 2), codec, layout)) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("layout", "gains"),
    [
        ("stereo", [0.5, 0.5]),
        ("3.0", [0.5, 0.5, 1]),
        ("quad", [0.5, 0.5, 0.5**1.5, 0.5**1.5]),
        ("5.1", [0.5, 0.5, 1, 0, 0.5**1.5, 0.5**1.5]),
        ("7.1", [0.5, 0.5, 1, 0, 0.25, 0.25, 0.25, 0.25]),
        ("5 channels", [0.2] * 5),
    ],
)
def test_gains_in_closed_form(layout: str, gains: list[float]) -> None:
    assert downmix.layout_gains(av.AudioLayout(layout)).tolist() == pytest.approx(gains)


def test_loud_channels_together_stay_in_range(tmp_path: Path) -> None:
    heard = read_audio(write(tmp_path / "film.flac", with_voice(6, 0, 1, 2, 4, 5), "flac", "5.1"), RATE)
    assert np.abs(heard).max() == pytest.approx(1, abs=1e-3)
    assert np.corrcoef(heard, VOICE)[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("left", "right", "level"),
    [(1, -1, 0), (-1, 1, 0), (1, -0.7, 0), (-0.5, 1, 0), (1, 1, 0), (1, 0, -6.02), (1, 0.5, -2.5)],
)
def test_an_inverted_channel_does_not_silence_the_other(
    left: float, right: float, level: float, tmp_path: Path
) -> None:
    path = wav(tmp_path / "talk.wav", np.stack([VOICE * left, VOICE * right], 1), RATE)
    assert decibels(path) == pytest.approx(level, abs=0.1)


def test_an_inverted_channel_of_a_film_and_a_voice_in_the_effects_are_heard(tmp_path: Path) -> None:
    inverted = [VOICE, -VOICE, *with_voice(4)]
    assert decibels(write(tmp_path / "inverted.flac", inverted, "flac", "5.1")) == pytest.approx(0, abs=0.1)
    assert decibels(write(tmp_path / "low.flac", with_voice(6, 3), "flac", "5.1")) == pytest.approx(0, abs=0.1)


def test_two_unrelated_channels_are_averaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (9600, 2))
    heard = read_audio(wav(tmp_path / "two.wav", noise, RATE), RATE)
    np.testing.assert_allclose(heard, noise.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("header", ["true", "short", "unknown"])
def test_hours_of_silence_are_refused_before_they_are_decoded(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a FLAC's header says about its number of samples; four hours are 0.2 s here."""
    path = write(tmp_path / "silence.flac", [np.zeros(RATE // 2, np.float32)], "flac", "mono")
    content = bytearray(path.read_bytes())
    if header != "true":
        content[21] &= 0xF0
        content[22:26] = struct.pack(">I", RATE // 100 if header == "short" else 0)
    path.write_bytes(content)
    monkeypatch.setattr(downmix, "LONGEST_AUDIO", 0.2)
    monkeypatch.setattr(downmix, "_decode", None)
    with pytest.raises(MediaError, match="hours of sound; cut it") as error:
        read_audio(path)
    assert error.value.kind == "unsupported"


@pytest.mark.parametrize("claimed", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_length_of_a_piped_recording_is_that_of_its_samples(claimed: int, tmp_path: Path) -> None:
    path = wav(tmp_path / "piped.wav", VOICE, RATE)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", claimed)
    path.write_bytes(content)
    assert len(read_audio(path, RATE)) == len(VOICE)


def test_packets_that_hide_their_length_end_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav(tmp_path / "long.wav", np.zeros(RATE // 2), RATE)
    monkeypatch.setattr(downmix, "_packet_seconds", lambda path: 0.0)
    monkeypatch.setattr(downmix, "LONGEST_AUDIO", 0.2)
    with pytest.raises(MediaError, match="hours of sound"):
        read_audio(path)


def test_a_span_longer_than_any_recording_is_refused(tmp_path: Path) -> None:
    path = wav(tmp_path / "short.wav", VOICE, RATE)
    with pytest.raises(MediaError, match="over 4 hours"):
        read_audio(path, start=0.0, end=1e6)


@pytest.mark.parametrize("rate", [4_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_samples_are_audio_at_any_rate(tmp_path: Path, rate: int, count: int) -> None:
    wav(tmp_path / "a.wav", np.full(count, 0.2, np.float32), rate)
    assert len(read_audio(tmp_path / "a.wav", whole=True)) == max(1, round(count * 16_000 / rate))
