"""Real time: the frames of `say`, however the audio is cut; nothing waits for more than 160 ms of audio to come."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from audioavatar.avatar import Avatar
from audioavatar.config import SayConfig
from audioavatar.driven.ridge import REACH, Ridge
from audioavatar.live import AvatarStream, MotionStream
from audioavatar.motion import lip_gap
from audioavatar.say import AudioAvatar
from common.errors import InputError
from miniature.world.clips import DrawnClip

SMALL = SayConfig(longest_side=32)
FRAME = 640


def pushed(stream: AvatarStream, wave: np.ndarray, *cuts: int) -> np.ndarray:
    """All frames of a wave that is cut at these samples, and finished."""
    pieces = [frames for part in np.split(wave, cuts) for frames in stream.push(part)]
    return np.concatenate([*pieces, *stream.finish()])


def test_frames_are_those_of_say_however_the_audio_is_cut(speaker: AudioAvatar, voice: DrawnClip) -> None:
    audio, config = voice.audio[: FRAME * 12 + 100], replace(SMALL, seed=3, turntable=10, turn_frames=12)
    said = np.stack(list(speaker.say(audio, config).frames()))
    assert said.shape == (13, 32, 32, 3)  # the part of a frame counts as one
    for cuts in ((1, 1, 700, 3200, 3201, 7000), tuple(range(160, len(audio), 160))):
        assert np.array_equal(pushed(speaker.stream(config), audio, *cuts), said), cuts
    other = np.stack(list(speaker.say(audio, replace(config, seed=4)).frames()))
    assert not np.array_equal(other, said)


def test_a_frame_waits_for_four_more_and_depends_on_none_after_them(speaker: AudioAvatar, voice: DrawnClip) -> None:
    audio = voice.audio[: FRAME * 17]
    stream = speaker.stream(SMALL)
    assert not list(stream.push(audio[: 5 * FRAME - 1]))
    first = list(stream.push(audio[5 * FRAME - 1 : 5 * FRAME]))
    assert [frames.shape[0] for frames in first] == [1]
    assert (stream.clock.frames, stream.clock.samples, stream.clock.waiting) == (1, 5 * FRAME, 0)
    assert 0 < stream.clock.seconds < 60
    waiting = stream.push(audio[5 * FRAME :])
    assert stream.clock.waiting == 12  # nothing is made before somebody asks for it
    assert [frames.shape[0] for frames in waiting] == [4, 4, 4]
    louder = audio.copy()
    louder[13 * FRAME :] = -3 * louder[13 * FRAME :]
    early, late = (pushed(speaker.stream(SMALL), wave) for wave in (audio, louder))
    assert np.array_equal(early[:9], late[:9]) and not np.array_equal(early[9:], late[9:])


def test_flush_forgets_what_was_not_said(speaker: AudioAvatar, voice: DrawnClip) -> None:
    audio, after = voice.audio[: FRAME * 9 + 300], voice.audio[FRAME * 15 : FRAME * 24]
    stream, never = speaker.stream(SMALL), speaker.stream(SMALL)
    before = list(stream.push(audio))
    stream.flush()
    assert stream.clock.samples == stream.clock.frames * FRAME == 5 * FRAME
    assert np.array_equal(np.concatenate(before), np.concatenate(list(never.push(audio[: FRAME * 9]))))
    never.flush()
    rest = pushed(stream, after)
    assert len(rest) == 9 and np.array_equal(rest, pushed(never, after))


def test_a_finished_stream_takes_no_more(speaker: AudioAvatar, voice: DrawnClip) -> None:
    stream = speaker.stream(SMALL)
    assert len(pushed(stream, voice.audio[:200])) == 1
    assert stream.clock.samples == 200 and not stream.clock.waiting
    with pytest.raises(ValueError, match="is finished"):
        stream.push(voice.audio)
    with pytest.raises(ValueError, match="is finished"):
        stream.finish()
    assert not list(speaker.stream(SMALL).finish())
    with pytest.raises(InputError, match="audio is empty"):
        speaker.say(voice.audio[:0])


def test_in_silence_the_mouth_keeps_still(speaker: AudioAvatar, voice: DrawnClip) -> None:
    gap = lip_gap(speaker.avatar, speaker.say(np.zeros(FRAME * 20, np.float32)).motion)
    spoken = lip_gap(speaker.avatar, speaker.say(voice.audio).motion)
    assert float(gap.std()) < 0.25 * float(spoken.std())
    assert float(gap.mean()) < float(spoken.mean())


def test_a_long_sound_takes_no_more_memory(avatar: Avatar, speaker: AudioAvatar) -> None:
    """By the regression, which is quick; the buffers are the same."""
    width, components = 52 * (2 * REACH + 1), len(speaker.motion.space)
    weight = 0.01 * torch.randn(width, components, generator=torch.Generator().manual_seed(0))
    net = Ridge(torch.zeros(width), torch.ones(width), weight, torch.zeros(components), 1.0, 0.0)
    stream = MotionStream(avatar, replace(speaker.motion, net=net, features="logmel"), None, SMALL)
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    held = []
    for _ in range(12):
        stream.take(noise)
        assert sum(len(motion) for motion in stream.blocks()) in (21, 24, 25, 28)
        held.append((stream._audio.nbytes, stream._channels.untyped_storage().nbytes()))
    assert max(held[4:]) == max(held[:4]) and stream.done == 12 * 25 - 4 - 3


def test_the_first_frame_comes_within_150_ms_of_computation(speaker: AudioAvatar, voice: DrawnClip) -> None:
    def first_frame() -> float:
        stream, begin = speaker.stream(), time.process_time()
        assert len(next(stream.push(voice.audio[: 5 * FRAME]))) == 1
        return time.process_time() - begin

    assert min(first_frame() for _ in range(3)) < 0.15  # 0.04 seen
