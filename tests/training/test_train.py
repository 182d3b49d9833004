import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from common.process.signals import UNFINISHED
from common.recipe import dump_recipe, load_recipe
from common.runs import RunFolder
from common.shards.store import ShardReader, ShardWriter
from latents.constants import Constants, write_constants
from omniavatar.config import Recompute
from omniavatar.model.transformer import load_base
from omniavatar.planning.network import Network
from omniavatar.weights.checkpoints import load_adapter
from training.config import (
    CheckpointConfig,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from training.engine.zero import join_group
from training.fault_tolerance import TrainingDivergedError
from training.planning.flops import work
from training.train import Trainer, train

AtStage = Callable[[int], TrainConfig]


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def log_of(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.logs / "train.jsonl").read_text().splitlines()]


def events_of(run: RunFolder) -> list[ScalarEvent]:
    return EventAccumulator(str(run.logs / "tensorboard")).Reload().Scalars("train/loss")


@pytest.mark.parametrize("stage", [0, 3])
def test_a_stopped_training_resumes_bit_for_bit(at_stage: AtStage, tmp_path: Path, stage: int) -> None:
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    config = at_stage(stage)
    train(whole, config)
    train(parts, replace(config, steps=2))
    assert not same(adapter_of(whole), adapter_of(parts))
    train(parts, config)
    assert same(adapter_of(whole), adapter_of(parts))
    assert [(row["step"], row["loss"]) for row in log_of(whole)] == [(r["step"], r["loss"]) for r in log_of(parts)]
    assert [event.step for event in events_of(parts)] == [1, 2, 3, 4]


def test_a_finished_training_is_left_alone(config: TrainConfig, run: RunFolder) -> None:
    train(run, config)
    adapter = run.checkpoints / "adapter" / "pytorch_model.pt"
    before, log = adapter.stat().st_mtime_ns, (run.logs / "train.jsonl").read_text()
    train(run, config)
    assert adapter.stat().st_mtime_ns == before
    assert (run.logs / "train.jsonl").read_text() == log


def test_what_a_killed_save_left_is_overwritten_and_old_checkpoints_go(config: TrainConfig, run: RunFolder) -> None:
    saving = replace(config, checkpoint=CheckpointConfig(every_steps=1, keep=2))
    train(run, saving)
    state = run.checkpoints / "state"
    assert sorted(folder.name for folder in state.glob("step-*")) == ["step-00000003", "step-00000004"]
    before = adapter_of(run)
    # As if the power had failed after the third checkpoint, in the middle of the fourth.
    (state / "step-00000004").rename(state / "partial")
    next((state / "partial").glob("*.pt")).write_bytes(b"torn")
    (state / "latest").write_text("step-00000003")
    train(run, saving)
    assert same(adapter_of(run), before)
    assert [row["step"] for row in log_of(run)] == [1, 2, 3, 4]


def test_the_exported_adapter_is_the_trained_one(config: TrainConfig, run: RunFolder) -> None:
    train(run, config)
    model = load_adapter(load_base(config.model.base), run.checkpoints / "adapter")
    official = adapter_of(run)
    # 20 per block and four modules of weight and bias: the rule of 844 tensors for 40 blocks, at four blocks.
    assert len(official) == 20 * 4 + 2 * 4
    assert official["audio_cond_projs.0.weight"].abs().max() > 0
    assert torch.equal(model.audio_cond_projs[0].weight, official["audio_cond_projs.0.weight"])


def test_a_base_is_trained_from_nothing_and_exported_for_diffusers(config: TrainConfig, run: RunFolder) -> None:
    plain = replace(config.model, variant="base", init="random")
    train(run, replace(config, model=plain, checkpoint=CheckpointConfig(export_dtype="bf16")))
    trained, start = load_base(run.checkpoints / "base"), load_base(config.model.base)
    assert {p.shape for p in trained.parameters()} == {p.shape for p in start.parameters()}
    assert trained(torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 6, 12)).isfinite().all()
    assert "audio_gap" not in log_of(run)[-1]


def test_a_changed_training_starts_over_and_a_change_back_loses_nothing(
    config: TrainConfig, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    train(run, config)
    before, log = adapter_of(run), log_of(run)
    train(run, replace(config, optimizer=replace(config.optimizer, lr=0.5), steps=2))
    assert "optimizer.lr changed" in caplog.text
    assert [row["step"] for row in log_of(run)] == [1, 2]
    assert not same(adapter_of(run), before)
    train(run, replace(config, steps=4))
    assert log_of(run) == log
    assert [event.step for event in events_of(run)] == [1, 2, 3, 4]
    assert same(adapter_of(run), before)


def test_steps_that_are_not_finite_are_skipped_counted_and_named(
    config: TrainConfig, run: RunFolder, shards: Path, tmp_path: Path
) -> None:
    reader = ShardReader(shards)
    with ShardWriter(tmp_path / "poisoned", 16) as writer:
        for number, clip_id in enumerate(reader.index["clip_id"].to_pylist()):
            tensors, meta = reader.sample(number)
            if clip_id == "clip005":
                tensors["latents"] = np.full_like(tensors["latents"], np.nan)
            writer.add(clip_id, tensors, meta)
    (tmp_path / "poisoned" / "constants.safetensors").write_bytes((shards / "constants.safetensors").read_bytes())
    train(run, replace(config, shards=tmp_path / "poisoned", steps=3))  # one epoch of 12 clips
    rows = log_of(run)
    assert [row["skipped"] for row in rows][-1] == 1
    skipped = [json.loads(line) for line in (run.logs / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 1 and "clip005" in skipped[0]["clips"] and len(skipped[0]["clips"]) == 4
    assert all(value.isfinite().all() for value in adapter_of(run).values())


def test_a_training_that_diverged_ends_with_a_sentence(config: TrainConfig, run: RunFolder) -> None:
    wild = replace(config, optimizer=replace(config.optimizer, lr=1e30, warmup=0), steps=50)
    with pytest.raises(TrainingDivergedError, match="lower optimizer.lr"):
        train(run, wild)


def test_the_log_says_what_was_done(config: TrainConfig, run: RunFolder) -> None:
    train(run, replace(config, validation=ValidationConfig(every=2, samples=4, sigmas=(0.3, 0.85))))
    baseline, *rows = log_of(run)
    assert baseline["step"] == 0 and {"heldout_loss", "audio_gap", "silence_gap"} < set(baseline)
    assert [row["lr"] for row in rows] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])
    for row in rows:
        assert 0 <= row["data_wait"] <= row["seconds"]
        assert row["tokens_per_s"] * row["seconds"] == pytest.approx(4 * 5 * 4)  # 4 samples, 5 frames of 2 x 2 tokens
        assert row["data_wait_share"] == pytest.approx(row["data_wait"] / row["seconds"])
        assert row["peak_memory"] > 1e8 and row["peak_source"].startswith("measured, ")
    assert ["heldout_loss" in row for row in rows] == [False, True, False, True]
    assert rows[1]["heldout_loss"] == pytest.approx((rows[1]["heldout_30"] + rows[1]["heldout_85"]) / 2)


def test_the_log_is_flushed_with_each_checkpoint(config: TrainConfig, run: RunFolder) -> None:
    join_group(1)
    trainer = Trainer(run, config)
    steps = trainer.enter_phase()
    with trainer.report:
        for step in (1, 2):
            trainer.report.step(step, trainer.train_step(steps))
        trainer.save()
        assert [event.step for event in events_of(run)] == [1, 2]


@pytest.mark.parametrize("mode", ["none", "selective"])
def test_utilisation_is_work_by_time_and_peak(config: TrainConfig, run: RunFolder, mode: Recompute) -> None:
    train(run, replace(config, steps=1, model=replace(config.model, gradient_checkpointing=mode)))
    network = Network(24, 32, 4, 2, 12, 16, rank=4, audio_dim=24)
    sample = work(network, tokens=20, frames=5, text=6, recompute=mode)
    (row,) = log_of(run)
    possible = row["seconds"] * row["peak_tflops"] * 1e12
    assert row["mfu"] * possible == pytest.approx(4 * sample.step)
    assert row["hfu"] * possible == pytest.approx(4 * sample.executed)
    assert (row["hfu"] > row["mfu"]) == (mode == "selective")


def test_minutes_end_a_training_and_drive_its_rate(config: TrainConfig, run: RunFolder) -> None:
    timed = replace(config, steps=0, minutes=1 / 60, optimizer=OptimizerConfig(warmup=0, decay=1.0))
    train(run, timed)
    rates = [row["lr"] for row in log_of(run)]
    assert len(rates) > 1
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]


def test_a_training_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0 and minutes is 0"):
        TrainConfig(steps=0)


def test_a_training_is_its_yaml(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(dump_recipe(config))
    assert load_recipe(tmp_path / "train.yaml", TrainConfig) == config


def test_a_request_to_stop_saves_first(config: TrainConfig, run: RunFolder) -> None:
    endless = replace(config, steps=100_000, checkpoint=CheckpointConfig(every_seconds=0))
    run.root.mkdir()
    (run.root / "train.yaml").write_text(dump_recipe(endless))
    command = [sys.executable, "-m", "training.train", str(run.root)]
    with subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE) as worker:
        while not (run.logs / "train.jsonl").exists() or len(log_of(run)) < 3:
            assert worker.poll() is None
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == UNFINISHED
    assert (run.checkpoints / "state" / "latest").read_text() == f"step-{len(log_of(run)):08d}"


def child_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}


def spoken_shards(folder: Path) -> None:
    """Clips whose latents after the first frame are a fixed function of their sound."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 16)).astype(np.float32)
    with ShardWriter(folder, 64) as writer:
        for number in range(48):
            heard = rng.standard_normal((9, 4)).astype(np.float32)
            latents = np.zeros((16, 3, 2, 2), np.float32)
            for frame in (1, 2):
                latents[:, frame] = (heard[4 * frame - 3 : 4 * frame + 1].mean(0) @ mix)[:, None, None]
            tensors = {
                "latents": latents,
                "references": np.zeros((1, 16, 2, 2)),
                "text": np.zeros((1, 12)),
                "audio": heard,
            }
            split = "test" if number >= 40 else "train"
            writer.add(
                f"clip{number:02d}",
                {name: array.astype(np.float16) for name, array in tensors.items()},
                {"video_id": "", "split": split},
            )
    write_constants(folder, Constants(torch.zeros(1, 12), text_length=1, audio_dim=8))


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 0.1, 10.0), (True, -0.03, 0.03)])
def test_the_audio_gap_opens_unless_the_audio_was_shuffled(
    config: TrainConfig, run: RunFolder, tmp_path: Path, shuffled: bool, low: float, high: float
) -> None:
    spoken_shards(tmp_path / "spoken")
    listening = replace(
        config,
        shards=tmp_path / "spoken",
        model=replace(config.model, variant="full"),
        data=DataConfig(batch=20, shuffle_audio=shuffled),
        objective=ObjectiveConfig(prefix=(1, 1), zero_first_audio=0.0, weighting="uniform", shift=1.0),
        optimizer=OptimizerConfig(lr=1e-2, warmup=10),
        validation=ValidationConfig(every=80, samples=8),
        steps=80,
    )
    train(run, listening)
    baseline, last = log_of(run)[0], log_of(run)[-1]
    # It starts as its base, which is deaf.
    assert (baseline["step"], baseline["audio_gap"], baseline["silence_gap"]) == (0, 0, 0)
    assert low < last["audio_gap"] < high
    assert shuffled or last["silence_gap"] > low
