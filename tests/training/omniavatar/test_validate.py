from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.config import DataConfig, EngineConfig, ObjectiveConfig, ValidationConfig
from training.data.buckets import Bucket
from training.data.windows import ClipWindows
from training.engine.zero import Engine, join_group
from training.omniavatar.validate import HeldOut, grouped_by_shape, shape_name


class Loudness(nn.Module):
    """Its velocity is `ear` times the mean square of the sound, everywhere."""

    def __init__(self, ear: float) -> None:
        super().__init__()
        self.ear = nn.Parameter(torch.tensor([ear]))
        self.passes = 0

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None, audio: Tensor | None
    ) -> Tensor:
        self.passes += 1
        assert audio is not None
        return self.ear * audio.square().mean(dim=(1, 2)).view(-1, 1, 1, 1, 1).expand_as(latents)


def engine_of(ear: float) -> Engine:
    join_group(threads=1)
    model = Loudness(ear)
    return Engine(model, torch.optim.AdamW(model.parameters()), 1, EngineConfig(stage=0))


SETTINGS = ValidationConfig(every=1, split="train", samples=23, sigmas=(0.3, 0.85))


def held_out(shards: Path, batch: int = 4, rank: int = 0, world: int = 1) -> HeldOut:
    windows = ClipWindows(shards, DataConfig(batch=batch), seed=0)
    return HeldOut(windows, SETTINGS, ObjectiveConfig(), False, rank, world)


def by_hand(held: HeldOut, ear: float, sound: str) -> list[float]:
    """Loss of each sample, one at a time, from the definition: squared error of the velocity after the prefix."""
    losses = []
    for fixed in held.batches:
        batch = fixed.at(0.5, sound)
        assert batch.audio is not None
        for clean, noise, audio, prefix in zip(batch.clean, batch.noise, batch.audio, batch.prefix, strict=True):
            error = ear * audio.square().mean() - (noise - clean)
            losses.append(error[:, prefix:].square().mean().item())
    return losses


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_losses_and_gaps_are_what_their_words_say(mixed_shards: Path) -> None:
    held = held_out(mixed_shards)
    numbers = held.losses(engine_of(0.7))
    right, swapped, silent = (mean(by_hand(held, 0.7, sound)) for sound in ("right", "swapped", "silent"))
    assert numbers["heldout_loss"] == pytest.approx(right, rel=1e-5)
    assert numbers["heldout_30"] == numbers["heldout_85"] == pytest.approx(right, rel=1e-5)  # it does not look at time
    assert numbers["audio_gap"] == pytest.approx(swapped / right - 1, abs=1e-5)
    assert numbers["silence_gap"] == pytest.approx(silent / right - 1, abs=1e-5)
    assert abs(numbers["silence_gap"]) > 0.1 and numbers["audio_gap"] != 0
    of_five = [loss for f, loss in zip(_shapes(held), by_hand(held, 0.7, "right"), strict=True) if f.frames == 5]
    assert numbers["heldout_32x32x17"] == pytest.approx(mean(of_five), rel=1e-5)
    assert {"heldout_32x32x9", "heldout_32x32x33"} < set(numbers)


def _shapes(held: HeldOut) -> list[Bucket]:
    return [fixed.bucket for fixed in held.batches for _ in fixed.batch.sigma]


def test_a_model_without_audio_has_no_gap(mixed_shards: Path) -> None:
    numbers = held_out(mixed_shards).losses(engine_of(0.0))
    assert (numbers["audio_gap"], numbers["silence_gap"]) == (0, 0)


def test_the_numbers_do_not_depend_on_the_size_of_the_batches(mixed_shards: Path) -> None:
    engine = engine_of(0.7)
    four, one = (held_out(mixed_shards, batch).losses(engine) for batch in (4, 1))
    assert four == pytest.approx(one, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("world", [2, 3, 4, 5])
def test_ranks_share_the_batches_and_make_equally_many_passes(shards: Path, world: int) -> None:
    whole = held_out(shards, 2).losses(engine_of(0.7))
    total, samples, passes = 0.0, 0, set()
    for rank in range(world):  # each by itself: an engine of one rank adds nothing up
        engine, share = engine_of(0.7), held_out(shards, 2, rank, world)
        own = sum(len(fixed.batch.sigma) for fixed in share.batches if fixed.counts)
        total += own * share.losses(engine)["heldout_loss"]
        samples += own
        assert isinstance(engine.module, Loudness)
        passes.add(engine.module.passes)
    assert samples == 12
    assert total / samples == pytest.approx(whole["heldout_loss"], rel=1e-6)
    assert passes == {-(-6 // world) * 3 * 2}  # of six batches: three sounds, two times


def test_a_validation_is_the_same_every_time_and_leaves_the_model_training(shards: Path) -> None:
    engine, held = engine_of(0.7), held_out(shards)
    engine.module.train()
    first = held.losses(engine)
    assert held.losses(engine) == first == held_out(shards).losses(engine)
    assert engine.module.training
    assert "heldout_32x32x17" not in first  # one shape alone is the mean


def test_validation_drops_neither_audio_nor_text(mixed_shards: Path) -> None:
    every = replace(ObjectiveConfig(), audio_dropout=1.0, text_dropout=1.0, zero_first_audio=1.0, prefix=(1, 1))
    windows = ClipWindows(mixed_shards, DataConfig(batch=4), seed=0)
    held = HeldOut(windows, SETTINGS, every, plain=False)
    for rows, fixed in zip(grouped_by_shape(windows, range(23)), held.batches, strict=True):
        assert fixed.batch.audio is not None and fixed.swapped is not None
        for row, audio, swapped, text in zip(rows, fixed.batch.audio, fixed.swapped, fixed.batch.text, strict=True):
            sample = windows.read(row)
            assert torch.equal(audio, sample.audio) and not torch.equal(swapped, audio)
            assert torch.equal(text[:3], sample.text)


def test_shapes_are_named_in_pixels_and_video_frames() -> None:
    assert shape_name(Bucket(60, 104, 19)) == "480x832x73"
