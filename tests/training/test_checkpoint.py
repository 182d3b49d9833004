import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from common.runs import DiskFullError, RunFolder, disk_guard, read_json
from training.checkpoint import record_provenance
from training.config import CheckpointConfig, OptimizerConfig, TrainConfig, ValidationConfig
from training.state import TrainState
from training.train import train


def test_a_run_folder_changes_between_trainings_without_losing_either(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = {"optimizer.lr": 1e-3, "optimizer.betas": (0.9, 0.98), "model.adapter": None}
    second = first | {"optimizer.lr": 1e-4}
    latest, log = run.checkpoints / "state" / "latest", run.logs / "train.jsonl"
    record_provenance(run, first)
    latest.write_text("first")
    log.write_text("first")
    record_provenance(run, first)
    assert latest.read_text() == log.read_text() == "first"
    record_provenance(run, second)
    assert not latest.exists() and not log.exists()
    latest.write_text("second")
    record_provenance(run, first)
    assert latest.read_text() == log.read_text() == "first"
    record_provenance(run, second)
    assert latest.read_text() == "second" and not log.exists()


def test_a_changed_base_is_noticed(
    config: TrainConfig, run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    shutil.copytree(config.model.base, base)
    mine = replace(config, steps=1, model=replace(config.model, base=base))
    train(run, mine)
    weights = base / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    train(run, replace(mine, steps=2))
    assert "Training starts afresh: model.base changed" in caplog.text
    assert len((run.logs / "train.jsonl").read_text().splitlines()) == 2


def test_the_best_adapter_is_that_of_the_lowest_held_out_loss(config: TrainConfig, run: RunFolder) -> None:
    # At this rate the held-out loss falls, rises, and falls again.
    watched = replace(
        config,
        optimizer=OptimizerConfig(lr=0.1, warmup=2),
        validation=ValidationConfig(every=1, samples=4),
        checkpoint=CheckpointConfig(export_every_steps=1),
    )
    found = []
    for steps in (2, 3, 6):
        train(run, replace(watched, steps=steps))
        best = read_json(run.checkpoints / "best" / "best.json")
        rows = [json.loads(line) for line in (run.logs / "train.jsonl").read_text().splitlines()]
        lowest = min((row for row in rows if row["step"] > 0), key=lambda row: row["heldout_loss"])
        assert best == {"step": lowest["step"], "heldout_loss": lowest["heldout_loss"]}
        assert same_weights(run.checkpoints / "best", run.checkpoints / "adapters" / f"step-{best['step']:08d}")
        found.append(best["step"])
    assert found == [1, 1, 6]


def same_weights(left: Path, right: Path) -> bool:
    one, other = (torch.load(folder / "pytorch_model.pt", weights_only=True) for folder in (left, right))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_of_an_earlier_version_is_still_read() -> None:
    assert TrainState(**{"step": 3, "elapsed": 1.0, "skipped": 0, "skipped_in_a_row": 0}).best_loss is None
    assert TrainState(**asdict(TrainState(step=7, best_loss=0.5))) == TrainState(step=7, best_loss=0.5)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_recognised_in_what_torch_says(size: int) -> None:
    with pytest.raises(DiskFullError, match="checkpoint could not be written whole"), disk_guard("checkpoint"):
        torch.save(torch.zeros(size), "/dev/full")
