from dataclasses import replace

import numpy as np
import pytest

from omniavatar.config import GenerateConfig
from omniavatar.generate import fitted
from omniavatar.video.chunks import frames_for_tokens, frames_to_remake, latent_length, plan_chunks


@pytest.mark.parametrize(
    ("tokens", "lengths"),
    [(30_000, (105, 57, 57, 33)), (60_000, (213, 117, 121, 65)), (80_000, (281, 157, 161, 85))],
)
def test_chunk_lengths_are_those_of_the_released_code(tokens: int, lengths: tuple[int, ...]) -> None:
    sizes = ((400, 720), (720, 720), (528, 960), (720, 1280))
    assert tuple(frames_for_tokens(tokens, *size) for size in sizes) == lengths
    counts = [latent_length(length) * h * w // 256 for length, (h, w) in zip(lengths, sizes, strict=True)]
    if tokens == 30_000:
        assert counts == [30_375, 30_375, 29_700, 32_400]


def test_thirty_seconds_take_nine_chunks() -> None:
    chunks = plan_chunks(750, 105)
    assert len(chunks) == 9
    assert 105 + 8 * (105 - 13) >= 751
    assert [chunk.prefix_latents for chunk in chunks[:2]] == [1, 4]


@pytest.mark.parametrize("overlap", [1, 5, 9, 13, 17, 21])
@pytest.mark.parametrize("length", [33, 57, 65, 85, 105, 117, 213, 281])
def test_every_audio_frame_is_new_once_and_every_chunk_is_full(length: int, overlap: int) -> None:
    whole = plan_chunks(3000, length, overlap, full_last_chunk=True)
    starts, stops = np.array([[chunk.audio_start, chunk.audio_stop] for chunk in whole]).T
    assert starts[0] == 0 and np.array_equal(starts[1:], stops[:-1])
    assert {chunk.frames for chunk in whole} == {length}
    assert [chunk.prefix_frames for chunk in whole] == [1] + [overlap] * (len(whole) - 1)
    # The released code's count, from its own formula.
    frames = np.arange(1, 3001)
    times = np.maximum(0, frames - length + 1) // (length - overlap) + 1
    counts = times + (length - 1 + (times - 1) * (length - overlap) < frames)
    assert (stops[counts - 1] >= frames).all() and (stops[counts - 2] < frames)[counts > 1].all()
    for n, count in zip(frames.tolist(), counts.tolist(), strict=True):
        assert plan_chunks(n, length, overlap, full_last_chunk=True) == whole[:count]


@pytest.mark.parametrize(("length", "overlap", "remade"), [(33, 13, 8), (33, 5, 0), (105, 13, 12), (57, 1, 0)])
def test_the_last_chunk_is_as_short_as_what_is_left(length: int, overlap: int, remade: int) -> None:
    full = plan_chunks(3000, length, overlap, remade, full_last_chunk=True)
    for frames in range(1, 3001):
        *before, last = plan_chunks(frames, length, overlap, remade)
        assert before == full[: len(before)] and (not before or before[-1].audio_stop < frames)
        assert 0 <= last.audio_stop - frames < 4
        assert last.frames % 4 == 1 and last.frames >= last.prefix_frames + last.remade + 4
        assert last.full_latent_frames == latent_length(length)
        assert replace(last, audio_stop=last.audio_stop + last.shortened, shortened=0) == full[len(before)]


@pytest.mark.parametrize("size", [(400, 720), (128, 128)])
def test_one_second_of_voice_takes_29_frames(size: tuple[int, int]) -> None:
    config = fitted(GenerateConfig(), *size)
    (chunk,) = plan_chunks(25, config.chunk_frames, config.overlap, config.blend, config.full_last_chunk)
    assert (chunk.frames, chunk.latent_frames) == (29, 8)


@pytest.mark.parametrize("remade", [4, 8, 16])
@pytest.mark.parametrize("length", [33, 105])
def test_frames_made_again_are_the_last_of_the_chunk_before(length: int, remade: int) -> None:
    chunks = plan_chunks(3000, length, 13, remade, full_last_chunk=True)
    starts, stops = np.array([[chunk.audio_start, chunk.audio_stop] for chunk in chunks]).T
    assert np.array_equal(starts[1:], stops[:-1] - remade)
    assert {chunk.frames for chunk in chunks} == {length} and stops[-2] < 3000 <= stops[-1]
    assert [chunk.remade for chunk in chunks] == [0] + [remade] * (len(chunks) - 1)


@pytest.mark.parametrize(("length", "frames"), [(105, 12), (49, 12), (33, 8), (21, 0), (17, 0), (5, 0)])
def test_short_chunks_keep_a_quarter_new(length: int, frames: int) -> None:
    assert frames_to_remake(12, length, 13) == frames
    assert frames_to_remake(0, length, 13) == 0


def test_windows_are_those_of_the_released_code() -> None:
    first, second, third = plan_chunks(250, 105, full_last_chunk=True)[:3]
    assert (first.audio_start, first.audio_stop, first.new_frames) == (0, 104, 104)
    assert (second.audio_start, second.audio_stop, second.new_frames) == (104, 196, 92)
    assert (third.audio_start - third.prefix_frames, third.audio_stop) == (183, 288)
    assert third.latent_frames == 27


@pytest.mark.parametrize(
    "bad", [(0, 33, 13), (10, 32, 13), (10, 33, 12), (10, 13, 13), (10, 33, 13, 20), (10, 33, 13, 2)]
)
def test_lengths_that_cannot_work_are_refused(bad: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        plan_chunks(*bad)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens=1000"):
        frames_for_tokens(1000, 720, 1280)
