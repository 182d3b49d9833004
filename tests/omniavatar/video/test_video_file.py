from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from common.media.audio import read_audio
from common.media.marks import read_marks
from common.media.video import decode_video, read_video
from common.runs import read_json
from omniavatar.config import GenerateConfig
from omniavatar.video.video_file import audio_track, write_avatar_video, write_settings


def test_video_and_audio_of_the_file_start_together(tmp_path: Path) -> None:
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    frames[10:12] = 255
    tone = np.zeros(25 * 640 - 300, np.float32)
    tone[10 * 640 : 12 * 640] = np.sin(np.arange(1280) * 0.3) * 0.8
    write_avatar_video(tmp_path / "out.mp4", frames, tone)
    video, audio = read_video(tmp_path / "out.mp4"), read_audio(tmp_path / "out.mp4")
    assert len(video) == 25
    lit = np.flatnonzero(video.mean((1, 2, 3)) > 128)
    loud = [number for number in range(25) if np.abs(audio[number * 640 : (number + 1) * 640]).mean() > 0.2]
    assert lit.tolist() == loud == [10, 11]


def test_flashes_and_clicks_stay_together(tmp_path: Path) -> None:
    """One frame in 25 is white and clicks; they are still the same ones after a minute."""
    minutes, rate = 1, 44_100
    count = minutes * 60 * 25 + 25
    dark, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    seconds = minutes * 60 + 1
    sound = np.zeros((seconds, rate), np.float32)
    sound[:, : rate // 25] = np.sin(np.arange(rate // 25) * 0.5) * 0.8
    frames = (white if number % 25 == 0 else dark for number in range(count))
    write_avatar_video(tmp_path / "clicks.mp4", frames, sound.ravel(), rate, count)
    for second in (0, 1, minutes * 60):
        lit = [frame.mean() > 128 for frame in decode_video(tmp_path / "clicks.mp4", second, second + 1)]
        heard = read_audio(tmp_path / "clicks.mp4", start=second, end=second + 1).reshape(25, 640)
        assert np.flatnonzero(lit).tolist() == [0], second
        assert np.flatnonzero(np.abs(heard).mean(axis=1) > 0.2).tolist() == [0], second


def test_players_accept_it(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_avatar_video(path, np.zeros((30, 32, 48, 3), np.uint8), np.zeros(100, np.float32), 48_000)
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0].codec_context, container.streams.audio[0]
        assert (picture.name, picture.pix_fmt, picture.width, picture.height) == ("h264", "yuv420p", 48, 32)
        assert (sound.codec_context.name, sound.rate) == ("aac", 48_000)
        assert float(sound.duration * sound.time_base) == pytest.approx(1.2, abs=0.05)
    assert read_marks(path)["generator"].startswith('{"software":"omniavatar-stack","version":')
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable before it is whole


def test_the_audio_starts_after_the_frames_shown_before_it() -> None:
    wave = np.ones(16_000, np.float32)
    official = GenerateConfig(lead_in=0.3, keep_reference=True)
    for rate in (16_000, 44_100):
        track = audio_track(wave, official, rate)
        assert (
            np.flatnonzero(track)[0] == round(0.3 * rate) + rate // 25 and len(track) == np.flatnonzero(track)[-1] + 1
        )
    assert np.array_equal(audio_track(wave, replace(official, lead_in=0.0, keep_reference=False)), wave)


def test_the_settings_lie_beside_the_video(tmp_path: Path) -> None:
    write_settings(tmp_path / "out.mp4", GenerateConfig(seed=3), {"prompt": "a man", "chunk_starts": [0, 104]})
    facts = read_json(tmp_path / "out.json")
    assert (facts["prompt"], facts["fps"], facts["settings"]["seed"]) == ("a man", 25, 3)
    read_back = facts["settings"] | {"load": GenerateConfig().load, "cache_polynomial": ()}
    assert GenerateConfig(**read_back) == GenerateConfig(seed=3)
    assert {"python", "torch", "diffusers", "omniavatar-stack"} <= set(facts["versions"])
