from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from common.shards import ShardReader
from training.data import BatchPlan, Bucket, ClipWindows, DataConfig, stream, token_cap, window_bucket

# Spec training 5.1: size in pixels, latent frames within 30,000 tokens. Spec omniavatar 3.3: the released arithmetic.
STRICT = [((400, 720), 26), ((480, 832), 19), ((720, 720), 14), ((720, 1280), 8)]
OFFICIAL = [((400, 720), 30_000, 27), ((720, 720), 30_000, 15), ((720, 1280), 30_000, 9), ((400, 720), 60_000, 54)]
OFFICIAL += [((720, 720), 80_000, 40), ((720, 1280), 80_000, 22), ((528, 960), 30_000, 15), ((528, 960), 60_000, 31)]


@pytest.mark.parametrize(("size", "frames"), STRICT)
def test_the_strict_cap_holds_the_token_table(size: tuple[int, int], frames: int) -> None:
    height, width = size[0] // 8, size[1] // 8
    assert token_cap(height, width, 30_000, "strict") == frames
    assert frames * height * width // 4 <= 30_000 < (frames + 1) * height * width // 4


@pytest.mark.parametrize(("size", "tokens", "frames"), OFFICIAL)
def test_the_official_cap_is_that_of_the_released_script(size: tuple[int, int], tokens: int, frames: int) -> None:
    assert token_cap(size[0] // 8, size[1] // 8, tokens, "official") == frames


def test_a_window_is_cut_by_clip_length_configuration_and_cap() -> None:
    assert window_bucket(50, 90, 7, DataConfig()).frames == 7
    assert window_bucket(50, 90, 100, DataConfig()).frames == 26
    assert window_bucket(50, 90, 100, DataConfig(max_latents=13)) == Bucket(50, 90, 13)


def plan_of(batch: int, seed: int = 0) -> tuple[BatchPlan, list[Bucket]]:
    buckets = [Bucket(4, 4, frames) for frames in [3, 5, 9] * 7 + [5, 5]]
    return BatchPlan(buckets, batch, seed), buckets


@pytest.mark.parametrize("batch", [1, 2, 4, 50])
def test_every_sample_comes_once_per_epoch_in_batches_of_one_shape(batch: int) -> None:
    plan, buckets = plan_of(batch)
    for epoch in range(3):
        batches = [plan[epoch * plan.epoch_length + place] for place in range(plan.epoch_length)]
        assert Counter(row for rows in batches for row in rows) == Counter(range(23))
        assert all(len({buckets[row] for row in rows}) == 1 and len(rows) <= batch for rows in batches)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    plan, _ = plan_of(2)
    epochs = [[plan[epoch * plan.epoch_length + place] for place in range(plan.epoch_length)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert [plan_of(2)[0][place] for place in reversed(range(plan.epoch_length))] == epochs[0][::-1]
    assert [plan_of(2, seed=1)[0][place] for place in range(plan.epoch_length)] != epochs[0]


def read_clips(shards: Path, start: int, steps: int, rank: int, world: int) -> list[list[tuple[str, int]]]:
    """Names and positions of the samples of this rank, one list per micro-batch."""
    windows = ClipWindows(shards, DataConfig(batch=2, micro_batches=4), seed=3)
    batches = islice(stream(windows, start, rank, world), steps)
    return [
        [(sample.clip_id, place) for sample, place in zip(micro.samples, micro.positions, strict=True)]
        for micros in batches
        for micro in micros
    ]


def test_the_samples_of_a_step_are_the_same_at_any_number_of_ranks(mixed_shards: Path) -> None:
    alone = read_clips(mixed_shards, 0, 5, 0, 1)
    for world in (2, 4):
        ranks = [read_clips(mixed_shards, 0, 5, rank, world) for rank in range(world)]
        assert [micro for together in zip(*ranks, strict=True) for micro in together] == alone


def test_a_resumed_stream_goes_on_where_it_was(mixed_shards: Path) -> None:
    assert read_clips(mixed_shards, 3, 2, 0, 1) == read_clips(mixed_shards, 0, 5, 0, 1)[12:]


def test_the_clips_of_a_step_are_named_for_all_ranks(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(batch=2, micro_batches=4), seed=3)
    seen = [name for micro in read_clips(mixed_shards, 2, 1, 0, 1) for name, _ in micro]
    assert windows.clips_of_step(2) == seen


def test_a_window_starts_with_its_clip_and_keeps_sound_and_picture_together(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(max_latents=4), seed=0)
    sample = windows.read(2)
    stored, _ = ShardReader(mixed_shards).sample(2)
    assert torch.equal(sample.latents, torch.from_numpy(stored["latents"][:, :4]).float())
    assert sample.audio.shape == (13, 24)
    assert torch.equal(sample.audio[:, :18], torch.from_numpy(stored["audio"][:13]).float())
    assert torch.equal(sample.audio[:, 18:], sample.audio[:, :6])  # the last state repeats the first
    assert windows.audio_dim == 24


def test_shuffled_audio_is_never_the_clip_s_own(shards: Path) -> None:
    windows = ClipWindows(shards, DataConfig(batch=4), seed=0)
    control = ClipWindows(shards, replace(windows.config, shuffle_audio=True), seed=0)
    for right, wrong in zip(windows.micro_batch(0).samples, control.micro_batch(0).samples, strict=True):
        assert right.clip_id == wrong.clip_id
        assert torch.equal(right.latents, wrong.latents)
        assert not torch.equal(right.audio, wrong.audio)


def test_splits_are_kept_apart(shards: Path) -> None:
    train, test = (ClipWindows(shards, DataConfig(split=split), seed=0).clip_ids for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4)
    assert not set(train) & set(test)


def test_clips_over_the_cap_are_counted(mixed_shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(), seed=0, shortest=5)
    assert "7 of 23 samples are too short" in caplog.text
    assert len(windows.rows) == 16


def test_an_empty_split_is_named(shards: Path) -> None:
    with pytest.raises(ValueError, match="split 'dev'"):
        ClipWindows(shards, DataConfig(split="dev"), seed=0)
