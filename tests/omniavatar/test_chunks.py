import pytest

from omniavatar.chunks import frames_for_tokens, latent_length, plan_chunks


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


@pytest.mark.parametrize("overlap", [1, 13])
@pytest.mark.parametrize("length", [33, 57, 93, 105, 209])
def test_every_audio_frame_is_new_once_and_every_chunk_is_full(length: int, overlap: int) -> None:
    for frames in range(1, 3000):
        chunks = plan_chunks(frames, length, overlap)
        # The released code's count, from its own formula.
        times = max(0, frames - length + 1) // (length - overlap) + 1
        covered = length - 1 + (times - 1) * (length - overlap)
        assert len(chunks) == times + (covered < frames)
        assert chunks[0].audio_start == 0 and chunks[-1].audio_stop >= frames
        assert len(chunks) == 1 or chunks[-2].audio_stop < frames
        assert all(a.audio_stop == b.audio_start for a, b in zip(chunks, chunks[1:], strict=False))
        assert {chunk.frames for chunk in chunks} == {length}


def test_windows_are_those_of_the_released_code() -> None:
    first, second, third = plan_chunks(250, 105)[:3]
    assert (first.audio_start, first.audio_stop, first.new_frames) == (0, 104, 104)
    assert (second.audio_start, second.audio_stop, second.new_frames) == (104, 196, 92)
    assert (third.audio_start - third.prefix_frames, third.audio_stop) == (183, 288)
    assert third.latent_frames == 27


@pytest.mark.parametrize("bad", [(0, 33, 13), (10, 32, 13), (10, 33, 12), (10, 13, 13)])
def test_lengths_that_cannot_work_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        plan_chunks(*bad)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens=1000"):
        frames_for_tokens(1000, 720, 1280)
