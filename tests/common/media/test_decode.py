"""Chosen frames are bit for bit those of a decode from the beginning, whatever the codec, container, rate and flags."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.media import decode as media_decode
from common.media import open as media_open
from common.media.audio import read_audio
from common.media.display import planes
from common.media.index import probe
from common.media.open import MediaError
from common.media.video import cut_clip, decode_stored, decode_video, read_frames, read_video
from common.media.write import audio_frame
from tests.common.media.test_video import click_times, clicks, number_of, numbered

X265 = "log-level=error:pools=1:frame-threads=1:bframes="
CODECS = {
    "h264": ("libx264", {"crf": "18", "bf": "3", "x264-params": "b-pyramid=2"}, ".mp4"),
    "h264 open gop": ("libx264", {"crf": "18", "bf": "3", "x264-params": "open-gop=1"}, ".mkv"),
    "hevc": ("libx265", {"x265-params": X265 + "3", "preset": "ultrafast"}, ".mp4"),
    "hevc ts": ("libx265", {"x265-params": X265 + "2", "preset": "ultrafast"}, ".ts"),
    "vp9": ("libvpx-vp9", {"crf": "20", "b": "0", "cpu-used": "8", "threads": "1"}, ".webm"),
    "vp8": ("libvpx", {"b": "500k", "deadline": "realtime", "cpu-used": "8"}, ".webm"),
    "av1": ("libsvtav1", {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}, ".mp4"),
    "mpeg4": ("mpeg4", {"qscale": "2", "bf": "2"}, ".avi"),
    "mpeg2video": ("mpeg2video", {"b": "3000k", "bf": "2"}, ".ts"),
}  # fmt: skip


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    fps: int = 25,
    gop: int = 12,
    stamps: list[int] | None = None,
    rotation: int = 0,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Frames and one click every 0.4 s in any codec; `stamps` (ms) replace the constant rate."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=options or {})
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        video.codec_context.gop_size = gop
        if rotation:
            video.set_display_rotation(rotation)
        tick = Fraction(1, fps) if stamps is None else Fraction(1, 1000)
        video.codec_context.time_base = tick
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number if stamps is None else stamps[number], tick
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def textured(count: int) -> np.ndarray:
    """Numbered frames over a moving texture, so that every frame is predicted from others."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 120, (16, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.stack([texture[:64, 2 * number % 192 :][:, :64] for number in range(count)])
    return frames | (numbered(count) & 128)


@pytest.mark.parametrize("name", CODECS)
def test_chosen_frames_equal_those_of_a_full_decode(name: str, tmp_path: Path) -> None:
    codec, options, suffix = CODECS[name]
    path = encode(tmp_path / f"video{suffix}", textured(80), codec, options)
    whole = read_video(path, fps=None)
    with av.open(str(path)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(whole, plain)
    assert len(whole) == 80 and probe(path).codec == name.split()[0]
    for wanted in ([0], [79], [78, 3, 40, 41, 3], list(range(5, 80, 9)), list(range(30, 50))):
        np.testing.assert_array_equal(read_frames(path, wanted), whole[wanted])
    np.testing.assert_array_equal(np.stack(list(decode_video(path, 1.4, 2.0))), whole[35:50])


@pytest.mark.parametrize("name", [name for name in CODECS if name != "mpeg4"])  # AVI has no stamps to find frames by
def test_no_codec_needs_a_decode_from_the_beginning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, options, suffix = CODECS[name]
    path = encode(tmp_path / f"video{suffix}", textured(80), codec, options)
    monkeypatch.setattr(media_decode, "_one_after_another", None)
    assert len(read_frames(path, [3, 40, 41, 78])) == 4


def encode_with_clicks(path: Path, count: int, fps: int, codec: str, options: dict[str, str]) -> Path:
    """Numbered frames at `fps` that start at 0.4 s, and sound whose clicks, each 0.4 s, start with them."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=options)
        video.height = video.width = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48_000, layout="mono")
        for number, picture in enumerate(numbered(count)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(0.4 * fps) + number, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = np.concatenate([np.zeros(19_200, np.float32), clicks(round(count * 25 / fps), 48_000)])
        for begin in range(0, len(sound), 960):
            container.mux(audio.encode(audio_frame(sound[begin : begin + 960], 48_000, begin)))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(("name", "fps"), [("h264", 15), ("h264", 60), ("hevc", 30), ("vp9", 30), ("av1", 60)])
def test_any_codec_and_rate_is_cut_to_25_fps_in_time_with_its_sound(name: str, fps: int, tmp_path: Path) -> None:
    codec, options, suffix = CODECS[name]
    path = encode_with_clicks(tmp_path / f"source{suffix}", 4 * fps, fps, codec, options)
    assert probe(path).fps == pytest.approx(fps, rel=1e-3) and probe(path).duration == pytest.approx(4, abs=0.01)
    start, end = 0.613, 3.013
    cut_clip(path, tmp_path / "cut.mp4", start, end)
    described, shown = probe(tmp_path / "cut.mp4"), read_video(tmp_path / "cut.mp4")
    assert (described.frames, described.fps, described.audio_rate) == (60, pytest.approx(25), 16_000)
    seen = np.array([number_of(frame) for frame in shown])
    assert np.abs(seen / fps - (start + np.arange(60) / 25)).max() <= 0.5 / fps + 1e-3
    sound = read_audio(tmp_path / "cut.mp4")
    assert len(sound) == 60 * 640
    expected = np.arange(0.8, 3, 0.4) - start
    assert click_times(sound) == pytest.approx(expected, abs=0.004)


def test_a_variable_rate_between_15_and_60_fps_keeps_its_times(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stamps = np.cumsum(rng.choice([17, 33, 40, 66], 90)).tolist()
    path = encode(tmp_path / "phone.mp4", numbered(90), stamps=stamps)
    assert probe(path).variable_frame_rate
    shown = np.array([number_of(frame) for frame in read_video(path)])
    times = (np.array(stamps) - stamps[0]) / 1000
    assert len(shown) == round(probe(path).duration * 25)
    nearest = np.abs(times[None] - np.arange(len(shown))[:, None] / 25).min(axis=1)
    assert np.abs(times[shown] - np.arange(len(shown)) / 25) == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_rotated_picture_is_upright_before_it_is_cropped(rotation: int, turns: int, tmp_path: Path) -> None:
    picture = np.kron(np.arange(8).reshape(2, 4)[..., None] * 30, np.ones((16, 16, 3))).astype(np.uint8)
    path = encode(tmp_path / "phone.mp4", np.stack([picture] * 3), options={"crf": "1"}, rotation=rotation)
    upright = np.rot90(picture, turns)
    assert (probe(path).height, probe(path).width) == upright.shape[:2]
    assert np.abs(read_frames(path, [1])[0].astype(int) - upright).max() < 6
    cropped = next(iter(decode_video(path, crop=(4, 8, 16, 16))))
    assert np.abs(cropped.astype(int) - upright[8:24, 4:20]).max() < 6
    with pytest.raises(ValueError, match="crop .* does not lie inside a picture"):
        next(iter(decode_video(path, crop=(50, 0, 16, 16))))


def test_an_interlaced_video_is_brought_to_whole_pictures(tmp_path: Path) -> None:
    fields = textured(81)
    woven = fields[:-1].copy()
    woven[:, 1::2] = fields[1:, 1::2]  # the second field is half a picture later
    options = {"crf": "12", "bf": "2", "flags": "+ildct+ilme", "x264-params": "tff=1"}
    path = encode(tmp_path / "tape.mp4", woven, options=options)
    assert probe(path).interlaced and not probe(encode(tmp_path / "film.mp4", woven)).interlaced
    with av.open(str(path)) as container:
        graph = av.filter.Graph()
        source = graph.add_buffer(template=container.streams.video[0])
        graph.link_nodes(source, graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")).configure()
        whole = []
        for frame in [*container.decode(video=0), None]:
            graph.vpush(frame)
            while len(whole) < 79 or frame is None:
                try:
                    whole.append(graph.vpull().to_ndarray(format="rgb24"))
                except (av.BlockingIOError, av.EOFError):
                    break
        stored = [frame.to_ndarray(format="rgb24") for frame in av.open(str(path)).decode(video=0)]
    np.testing.assert_array_equal(read_video(path, fps=None), np.stack(whole))
    np.testing.assert_array_equal(read_frames(path, [70, 13, 12, 0, 79]), np.stack(whole)[[70, 13, 12, 0, 79]])
    combing = [np.abs(np.diff(np.asarray(each, int), n=2, axis=1)).mean() for each in (stored, whole)]
    assert combing[1] < 0.7 * combing[0]


def test_a_stream_that_breaks_the_promise_of_its_key_frames_is_decoded_from_the_beginning(tmp_path: Path) -> None:
    """Every packet after the first is marked as a key frame, and only the first is one."""
    whole = read_video(encode(tmp_path / "true.mkv", textured(40), options={"bf": "0"}, gop=250), fps=None)
    with av.open(str(tmp_path / "true.mkv")) as true, av.open(str(tmp_path / "false.mkv"), "w") as false:
        stream = false.add_stream_from_template(true.streams.video[0])
        for packet in true.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                false.mux(packet)
    np.testing.assert_array_equal(read_frames(tmp_path / "false.mkv", [38]), whole[[38]])


def test_a_picture_that_changes_size_on_the_way_keeps_the_first_size(tmp_path: Path) -> None:
    for name, side, start in (("a", 64, 0), ("b", 96, 1000)):
        stamps = [start + 40 * number for number in range(20)]
        encode(tmp_path / f"{name}.ts", numbered(20, side, side), stamps=stamps)
    (tmp_path / "ab.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    frames = list(decode_video(tmp_path / "ab.ts", fps=None))
    assert {frame.shape for frame in frames} == {(64, 64, 3)}
    assert [number_of(frame) for frame in frames] == [*range(20), *range(20)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_planes_of_any_format_hold_luma_and_colour(pix_fmt: str, tmp_path: Path) -> None:
    frames = np.full((2, 32, 48, 3), (200, 40, 30), np.uint8)
    path = encode(tmp_path / "red.mp4", frames, pix_fmt=pix_fmt)
    luma, blue, red = planes(next(decode_stored(path)))
    assert luma.shape == (32, 48) and blue.shape == red.shape == (16, 24)
    # BT.601: Y = 16 + 0.257 R + 0.504 G + 0.098 B
    assert abs(luma.mean() - 90.5) < 3 and red.mean() > 180 and blue.mean() < 110


def test_a_picture_larger_than_any_camera_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "video.mp4", numbered(5))
    monkeypatch.setattr(media_open, "MAX_PIXELS", 1000)
    with pytest.raises(MediaError) as error:
        probe(path)
    assert error.value.kind == "unreadable"
