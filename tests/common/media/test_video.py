"""Frame-exact reading, writing and cutting, on files whose every frame shows its own number."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.media.audio import read_audio
from common.media.index import index_video, probe
from common.media.open import MediaError
from common.media.video import cut_clip, decode_video, read_frames, read_video
from common.media.write import audio_frame, write_video
from common.runs import DiskFullError

BITS = 8
CLICK_EVERY = 10  # frames


def numbered(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Frames whose column blocks spell the frame number in binary."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    block = width // BITS
    for number in range(count):
        for bit in range(BITS):
            if number >> bit & 1:
                frames[number, :, bit * block : (bit + 1) * block] = 255
    return frames


def number_of(frame: np.ndarray) -> int:
    block = frame.shape[1] // BITS
    middle = frame.shape[0] // 2
    return sum(int(frame[middle, bit * block + block // 2].mean() > 128) << bit for bit in range(BITS))


def clicks(count: int, rate: int = 16000) -> np.ndarray:
    """A 5 ms burst at the start of every tenth frame of 40 ms."""
    sound = np.zeros(count * rate // 25, np.float32)
    burst = 0.8 * np.sin(np.arange(rate // 200) * 2 * np.pi * 1800 / rate)
    for frame in range(0, count, CLICK_EVERY):
        sound[frame * rate // 25 :][: len(burst)] = burst
    return sound


def click_times(sound: np.ndarray, rate: int = 16000) -> np.ndarray:
    loud = np.flatnonzero(np.abs(sound) > 0.3) / rate
    return loud[np.concatenate([[True], np.diff(loud) > 0.1])] if len(loud) else loud


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, numbered(75), clicks(75))
    return path


def mux(path: Path, frames: np.ndarray, sound: np.ndarray | None, video_start: float, audio_start: float) -> None:
    """A container whose streams start at different times, as recorders write them."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "18"})
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound is not None else None
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(video_start * 25) + number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            for begin in range(0, len(sound), 1024):
                block = audio_frame(sound[begin : begin + 1024], 16000, round(audio_start * 16000) + begin)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def test_every_frame_comes_back_in_its_place(clip: Path) -> None:
    frames = read_video(clip)
    assert frames.shape == (75, 64, 64, 3) and frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == list(range(75))


def test_the_same_input_gives_the_same_bytes(clip: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    write_video(again, iter(numbered(75)), clicks(75))
    assert hashlib.sha256(clip.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()


def test_colours_survive(tmp_path: Path) -> None:
    frames = np.full((3, 32, 32, 3), (200, 40, 30), np.uint8)
    write_video(tmp_path / "red.mp4", frames, None)
    assert np.abs(read_video(tmp_path / "red.mp4").astype(int) - frames).max() <= 4


def test_clicks_stay_on_their_frames(clip: Path) -> None:
    sound = read_audio(clip)
    assert sound.shape == (75 * 640,) and sound.dtype == np.float32
    assert np.abs(click_times(sound) - np.arange(0, 75, CLICK_EVERY) / 25).max() < 0.002


def test_resampling_keeps_the_clock(tmp_path: Path) -> None:
    write_video(tmp_path / "hifi.mp4", numbered(50), clicks(50, 44100), audio_rate=44100)
    assert probe(tmp_path / "hifi.mp4").audio_rate == 44100
    sound = read_audio(tmp_path / "hifi.mp4")
    assert len(sound) == 50 * 640
    assert np.abs(click_times(sound) - np.arange(0, 50, CLICK_EVERY) / 25).max() < 0.002


def test_probe_describes_the_file(clip: Path) -> None:
    described = probe(clip)
    assert (described.frames, described.width, described.height, described.codec) == (75, 64, 64, "h264")
    assert described.fps == pytest.approx(25) and described.duration == pytest.approx(3)
    assert (described.has_audio, described.audio_rate, described.audio_channels) == (True, 16000, 1)
    assert not described.variable_frame_rate and described.max_frame_gap == pytest.approx(0.04)


def test_frames_are_found_from_key_frames_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, numbered(220), None)
    assert len(index_video(path).keys) > 4
    wanted = [210, 3, 49, 50, 51, 3, 100, 0, 219]
    assert [number_of(frame) for frame in read_frames(path, wanted)] == wanted


def test_a_frame_beyond_the_end_is_refused(clip: Path) -> None:
    with pytest.raises(IndexError, match="Frame 75 .* frames 0 to 74"):
        read_frames(clip, [0, 75])


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts", ".mov"])
def test_other_containers_are_read_exactly(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"other{suffix}"
    mux(path, numbered(60), clicks(60), 0, 0)
    assert [number_of(frame) for frame in read_video(path)] == list(range(60))
    assert number_of(read_frames(path, [41])[0]) == 41
    assert np.abs(click_times(read_audio(path))[:6] - np.arange(0, 60, CLICK_EVERY) / 25).max() < 0.07


def test_decoding_a_span_resamples_to_the_nearest_frame(clip: Path) -> None:
    assert [number_of(frame) for frame in decode_video(clip, 1.0, 1.2)] == [25, 26, 27, 28, 29]
    assert [number_of(frame) for frame in decode_video(clip, fps=10)][:6] == [0, 2, 5, 7, 10, 12]
    assert [number_of(frame) for frame in decode_video(clip, 0, 0.1, fps=50)] == [0, 0, 1, 1, 2]


def test_a_slow_source_repeats_frames_at_25_fps(tmp_path: Path) -> None:
    write_video(tmp_path / "slow.mp4", numbered(45), clicks(75), fps=15)
    numbers = [number_of(frame) for frame in read_video(tmp_path / "slow.mp4")]
    assert len(numbers) == 75
    assert np.abs(np.asarray(numbers) / 15 - np.arange(75) / 25).max() <= 1 / 30 + 1e-9


def test_size_scales_the_picture(clip: Path) -> None:
    assert next(iter(decode_video(clip, size=(32, 16)))).shape == (16, 32, 3)


def test_variable_frame_rate_is_seen_and_resampled(tmp_path: Path) -> None:
    stamps = np.cumsum(np.where(np.arange(75) % 3 == 0, 0.02, 0.05))
    write_video(tmp_path / "vfr.mp4", numbered(75), None, timestamps=stamps)
    described = probe(tmp_path / "vfr.mp4")
    assert described.variable_frame_rate and described.max_frame_gap == pytest.approx(0.05)
    shown = np.asarray([number_of(frame) for frame in read_video(tmp_path / "vfr.mp4")])
    error = (stamps[shown] - stamps[0]) - np.arange(len(shown)) / 25
    assert np.abs(error).max() <= 0.025 + 1e-6


@pytest.mark.parametrize(("video_start", "audio_start"), [(0, 0.4), (0.4, 0), (0.2, 1.0), (2.0, 0.4)])
def test_stream_starts_are_honoured(video_start: float, audio_start: float, tmp_path: Path) -> None:
    path = tmp_path / "shifted.mkv"
    mux(path, numbered(75), clicks(75), video_start, audio_start)
    described = probe(path)
    assert described.video_start - described.audio_start == pytest.approx(video_start - audio_start, abs=0.07)
    shift = audio_start - video_start
    expected = np.arange(0, 75, CLICK_EVERY) / 25 + shift
    expected = expected[(expected >= 0.1) & (expected < 2.9)]
    found = click_times(read_audio(path))
    found = found[(found >= 0.1) & (found < 2.9)]
    assert np.abs(found - expected).max() < 0.04


def test_a_span_of_sound_equals_the_same_span_of_all_sound(clip: Path) -> None:
    whole = read_audio(clip)
    part = read_audio(clip, start=1.0, end=2.0)
    assert len(part) == 16000
    assert np.abs(part - whole[16000:32000]).max() < 1e-4
    padded = read_audio(clip, start=-0.5, end=4.0)
    assert len(padded) == 72000 and not padded[:8000].any() and not padded[-14000:].any()
    assert np.abs(padded[8000:16000] - whole[:8000]).max() < 1e-4


def test_sound_without_pictures_is_read_whole(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "voice.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        container.mux(stream.encode(audio_frame(clicks(30), 16000, 0)))
    assert read_audio(tmp_path / "voice.wav") == pytest.approx(clicks(30), abs=1e-4)
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "voice.wav")
    assert error.value.kind == "no_video"


def test_cut_is_exact_in_picture_and_sound(clip: Path, tmp_path: Path) -> None:
    cut_clip(clip, tmp_path / "cut.mp4", 0.6, 2.6)
    assert [number_of(frame) for frame in read_video(tmp_path / "cut.mp4")] == list(range(15, 65))
    assert click_times(read_audio(tmp_path / "cut.mp4")) == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8], abs=0.003)


@pytest.mark.parametrize("frames", [-5, 3])
def test_cut_delays_the_sound_by_the_shift(frames: int, clip: Path, tmp_path: Path) -> None:
    cut_clip(clip, tmp_path / "cut.mp4", 0.6, 2.6, audio_shift=frames / 25)
    expected = [t for t in np.arange(-0.2, 2.4, 0.4) + frames / 25 if 0 <= t < 1.99]
    assert click_times(read_audio(tmp_path / "cut.mp4")) == pytest.approx(expected, abs=0.003)
    assert number_of(read_video(tmp_path / "cut.mp4")[0]) == 15


def test_rotated_pictures_come_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.set_display_rotation(90)
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, 32:] = 255  # the right half is bright: a quarter turn counter-clockwise puts it on top
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height) == (32, 64)
    frame = read_video(path)[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:24].mean() > 200 and frame[-24:].mean() < 50


@pytest.mark.parametrize("share", [0.0, 0.005, 0.4, 0.9, 0.999])
def test_a_truncated_file_is_named_so(share: float, clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    (tmp_path / "short.mp4").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "short.mp4")
    assert error.value.kind == "truncated"


def test_a_truncated_matroska_file_is_named_so(tmp_path: Path) -> None:
    mux(tmp_path / "whole.mkv", numbered(100), None, 0, 0)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "short.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "short.mkv")
    assert error.value.kind == "truncated"


def test_a_damaged_picture_is_an_error_of_the_file(clip: Path, tmp_path: Path) -> None:
    damaged = bytearray(clip.read_bytes())
    begin = bytes(damaged).index(b"mdat") + 4
    damaged[begin:] = bytes(len(damaged) - begin)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "damaged.mp4")
    assert error.value.kind == "unreadable"


@pytest.mark.parametrize(
    "content", [b"just some words\n" * 200, np.random.default_rng(0).bytes(5000), b"<html></html>"]
)
def test_other_files_are_not_videos(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_bytes(content)
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "page.mp4")
    assert error.value.kind in ("not_a_video", "no_video")


def test_a_picture_is_not_a_video(tmp_path: Path) -> None:
    picture = av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")
    picture.save(str(tmp_path / "face.png"))
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "face.png")
    assert error.value.kind == "not_a_video"


def test_missing_sound_and_missing_files_are_clear(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", numbered(5), None)
    assert not probe(tmp_path / "silent.mp4").has_audio
    with pytest.raises(MediaError) as error:
        read_audio(tmp_path / "silent.mp4")
    assert error.value.kind == "no_audio"
    with pytest.raises(FileNotFoundError, match="There is no media file at .*gone.mp4"):
        probe(tmp_path / "gone.mp4")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 33, 32, 3), np.uint8), "32x33.*even sizes"),
        (np.zeros((3, 32, 32, 3), np.float32), "expected uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "No frames"),
    ],
)
def test_wrong_pictures_are_refused_and_leave_no_file(frames: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "bad.mp4", frames, None)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(clip: Path) -> None:
    before = clip.read_bytes()

    def broken():
        yield from numbered(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(clip, broken(), None)
    assert clip.read_bytes() == before
    assert [path.name for path in clip.parent.iterdir()] == [clip.name]


def test_a_full_disk_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the writer opens beside the target is a device that is always full.
    monkeypatch.setattr("common.runs.temporary_beside", lambda path: tmp_path / ".full.mp4")
    (tmp_path / ".full.mp4").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="disk is full: .*full.mp4"):
        write_video(tmp_path / "full.mp4", numbered(30), clicks(30))
    assert list(tmp_path.iterdir()) == []
