"""The forecast against the published arithmetic for 774,207 clips."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from omniavatar.planning.network import network_of, parameters
from training.config import DataConfig, EngineConfig, ModelConfig, TrainConfig
from training.planning.devices import named_device
from training.planning.plan import exchanged, mean_and_slowest, plan, received

A100 = named_device("A100-80GB")
PAPER = TrainConfig(
    model=ModelConfig(base=Path("wan2.1-t2v-14b"), gradient_checkpointing="full"),
    data=DataConfig(micro_batches=64),
    engine=EngineConfig(stage=3, autocast="bf16", frozen_dtype="bf16"),
)


def with_mode(mode: str) -> TrainConfig:
    return replace(PAPER, model=replace(PAPER.model, gradient_checkpointing=mode))


def test_an_epoch_of_the_paper_on_64_a100() -> None:
    at_peak, reached = plan(PAPER, 64, A100, hfu=1.0), plan(PAPER, 64, A100)
    assert [bucket.tokens for bucket in at_peak.buckets] == [29_640]
    assert at_peak.buckets[0].work.executed / 1e15 == pytest.approx(5.182, rel=0.02)
    assert at_peak.buckets[0].seconds == pytest.approx(16.6, rel=0.02)
    assert at_peak.steps_per_epoch == 12_097
    assert 24 * at_peak.epoch_days == pytest.approx(55.8, rel=0.02)
    assert reached.epoch_days == pytest.approx(5.2, rel=0.02)
    assert reached.checkpoint_bytes / 1e9 == pytest.approx(7.4, rel=0.02)
    assert reached.run_days == pytest.approx(20_000 / 12_097 * reached.epoch_days)


def test_an_epoch_on_one_h200_at_the_speed_of_its_measured_products() -> None:
    h200 = replace(named_device("H200"), flops=790e12)
    alone = replace(PAPER, data=DataConfig())
    assert plan(alone, 1, h200, hfu=1.0).epoch_days == pytest.approx(58.8, rel=0.02)
    small = replace(alone, model=replace(alone.model, base=Path("wan2.1-t2v-1.3b")))
    assert plan(small, 1, h200, hfu=1.0).epoch_days == pytest.approx(10.4, rel=0.02)


def test_weights_travel_twice_at_stage_3_and_gradients_alone_below() -> None:
    frozen = parameters(network_of({}, "frozen_dit", 128, "multi"))
    third = received(frozen, PAPER.engine, 64, 1) - received(frozen, replace(PAPER.engine, stage=0), 64, 1)
    assert third * 64 / 63 / 1e9 == pytest.approx(57, rel=0.02)
    assert received(frozen, PAPER.engine, 1, 1) == 0
    lora = parameters(network_of({}, "lora", 128, "multi"))
    assert received(lora, replace(PAPER.engine, stage=0), 64, 8) == round(63 / 64 * 2 * 4 * lora.trained)
    assert plan(PAPER, 64, A100).traffic_seconds == pytest.approx(received(lora, PAPER.engine, 64, 1) / 25e9)


def test_it_fits_or_says_what_would() -> None:
    assert plan(PAPER, 8, A100).fits
    too_much = plan(with_mode("none"), 8, A100)
    assert not too_much.fits
    assert too_much.change == "model.gradient_checkpointing=selective"
    assert plan(with_mode("selective"), 8, A100).fits
    tight = plan(PAPER, 8, named_device("A100-40GB"))
    assert tight.fits and tight.faster == ()


def test_it_says_what_would_be_faster() -> None:
    assert plan(PAPER, 8, A100).faster == ("model.gradient_checkpointing=selective", "engine.stage=0")
    assert plan(with_mode("selective"), 8, A100).faster == ("engine.stage=0",)


def test_ranks_that_hold_samples_together_are_one_for_the_data() -> None:
    shared = replace(PAPER, engine=replace(PAPER.engine, sequence_parallel=4))
    one, four = plan(PAPER, 64, A100), plan(shared, 64, A100)
    assert (four.micro_batches, four.steps_per_epoch) == (64, one.steps_per_epoch)
    assert four.step_seconds == pytest.approx(one.step_seconds)  # four micro-batches each, of a quarter of the work
    assert four.largest.memory.kept == pytest.approx(one.largest.memory.kept / 4, rel=1e-4)
    # Query, key, value and output of 7,410 tokens in 40 blocks, three times, of which three quarters come from others.
    sent = 4 * 3 / 4 * 3 * 40 * 7_410 * 5_120 * 2
    network = network_of({}, "lora", 128, "multi")
    assert exchanged(network, shared.engine, 29_640, "full") == pytest.approx(sent)
    assert four.received == pytest.approx(received(parameters(network), PAPER.engine, 64, 4) + 4 * sent)
    with pytest.raises(ValueError, match="ranks is 6; expected a multiple of engine.sequence_parallel, 4"):
        plan(shared, 6, A100)


def test_weights_gathered_within_a_machine_spare_the_network() -> None:
    near = plan(replace(PAPER, engine=replace(PAPER.engine, hpz_ranks=8)), 64, A100)
    far = plan(PAPER, 64, A100)
    assert near.traffic_seconds < far.traffic_seconds / 5
    assert (near.largest.memory.total - far.largest.memory.total) / 1e9 == pytest.approx((28.7 + 2.5) / 8, rel=0.02)
    assert "engine.hpz_ranks=8" in far.faster


def test_micro_batches_are_dealt_evenly() -> None:
    planned = plan(replace(PAPER, data=DataConfig(micro_batches=20)), 8, A100)
    assert planned.micro_batches == 24
    assert planned.step_seconds == pytest.approx(3 * planned.buckets[0].seconds)


def test_the_slowest_of_several_draws() -> None:
    assert mean_and_slowest([(1.0, 10)], 64) == pytest.approx((1.0, 1.0))
    # Two ranks, half of the draws take 3 s: with probability 3/4 at least one of them does.
    assert mean_and_slowest([(3.0, 5), (1.0, 5)], 2) == pytest.approx((2.0, 2.5))


def test_ranks_wait_where_windows_differ(mixed_shards: Path, base_folder: Path) -> None:
    config = TrainConfig(model=ModelConfig(base=base_folder, lora_rank=4), data=DataConfig(batch=4))
    mixed = plan(config, 2, A100, mixed_shards)
    assert [(row.bucket.frames, row.clips, row.batch) for row in mixed.buckets] == [(3, 7, 4), (5, 9, 4), (9, 7, 4)]
    assert [row.tokens for row in mixed.buckets] == [12, 20, 36]
    assert mixed.steps_per_epoch == 4  # 2 + 3 + 2 micro-batches, two to a step
    assert 0.1 < mixed.waiting < 0.4
    capped = plan(replace(config, data=DataConfig(max_tokens=20)), 1, A100, mixed_shards)
    assert {row.bucket.frames: row.clips for row in capped.buckets} == {3: 7, 5: 16}


def test_what_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="hfu is 45"):
        plan(PAPER, 1, A100, hfu=45)
    with pytest.raises(ValueError, match="ranks is 0"):
        plan(PAPER, 0, A100)
    with pytest.raises(ValueError, match="raise data.max_tokens"):
        plan(replace(PAPER, data=DataConfig(max_tokens=100)), 1, A100)


def test_a_plan_for_a_named_device_imports_no_torch() -> None:
    code = "import sys, training.planning.plan, training.planning.table; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
