"""An avatar says audio: video, views, reproducible bytes; nothing of the drawn world is looked at."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audioavatar.config import ReliefConfig, SayConfig
from audioavatar.motion import lip_gap
from audioavatar.say import SHIPPED_MOTION, AudioAvatar, build
from common.media.index import probe
from common.media.marks import is_generated
from miniature.weights import model_paths
from miniature.world.clips import DrawnClip, draw_clip


def test_the_lips_follow_a_voice_never_trained_on(speaker: AudioAvatar, voice: DrawnClip) -> None:
    talk = speaker.say(voice.audio)
    gap = lip_gap(talk.avatar, talk.motion)
    assert len(talk) == 30
    opening = torch.from_numpy(voice.mouth[:, 0])
    assert float(torch.corrcoef(torch.stack([gap, opening]))[0, 1]) > 0.6 and float(gap.std()) > 1
    swapped = lip_gap(talk.avatar, speaker.say(draw_clip(1_000_104, 1.2).audio).motion)
    assert float(torch.corrcoef(torch.stack([swapped, opening]))[0, 1]) < 0.5


def test_a_talk_is_a_marked_video_of_the_audios_length(speaker: AudioAvatar, voice: DrawnClip, tmp_path: Path) -> None:
    talk = speaker.say(audio := voice.audio[: 640 * 14], SayConfig(longest_side=96))
    talk.save(tmp_path / "a.mp4")
    index = probe(tmp_path / "a.mp4")
    assert (index.width, index.height) == (96, 96) and is_generated(tmp_path / "a.mp4")
    speaker.say(audio, SayConfig(longest_side=96)).save(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    frames = np.stack(list(talk.frames()))
    assert frames.shape == (14, 96, 96, 3) and float(np.abs(np.diff(frames.astype(int), axis=0)).max()) > 40


def test_a_turntable_shows_other_sides_and_comes_back(speaker: AudioAvatar, voice: DrawnClip) -> None:
    config = SayConfig(longest_side=64, turntable=15, turn_frames=20)
    turning, front = (list(speaker.say(voice.audio[: 640 * 22], c).frames()) for c in (config, SayConfig(64)))
    apart = [float(np.abs(a.astype(int) - b).mean()) for a, b in zip(turning, front, strict=True)]
    assert apart[0] == apart[20] == 0 and apart[5] > 2 and apart[15] > 2


def test_nothing_drawn_is_read(
    speaker: AudioAvatar, portrait: np.ndarray, voice: DrawnClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, audio = model_paths()["face_detector"], voice.audio
    names = [name for name in sys.modules if name.split(".")[0] == "miniature"]
    for name in ("miniature", *names):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now raises ImportError
    with pytest.raises(ImportError):
        import miniature  # noqa: F401
    avatar = build(portrait, detector, ReliefConfig(steps=1))
    again = AudioAvatar(avatar, speaker.motion, speaker.encoder)
    assert len(list(again.say(audio[:6400]).frames())) == 10


def test_the_shipped_motion_is_small() -> None:
    assert SHIPPED_MOTION.stat().st_size < 3e6
