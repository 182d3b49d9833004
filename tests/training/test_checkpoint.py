import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from common.runs import DiskFullError, FormatVersionError, RunFolder, disk_guard, read_json
from training.checkpoint import FORMAT_VERSION, Checkpoints, aside, record_provenance
from training.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from training.engine.zero import join_group
from training.state import TrainState
from training.train import Trainer, train

FORMATS = Path(__file__).parents[1] / "assets" / "formats"


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
    assert "Starting a new training: model.base changed" in caplog.text
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


@pytest.fixture
def old_run(tmp_path: Path) -> RunFolder:
    """A training of commit 35d976c after two of four steps, in format version 1."""
    shutil.copytree(FORMATS / "training-1", tmp_path / "old")
    return RunFolder(tmp_path / "old")


def old_config(run: RunFolder) -> TrainConfig:
    return TrainConfig(
        shards=FORMATS / "shards-1",
        model=ModelConfig(base=run.root / "base", lora_rank=1, lora_alpha=1.0),
        data=DataConfig(batch=2, micro_batches=1),
        optimizer=OptimizerConfig(lr=1e-2, warmup=0),
        engine=EngineConfig(stage=3),
        steps=4,
        seed=5,
    )


def test_a_training_of_format_version_1_is_resumed(old_run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    config = old_config(old_run)
    join_group(config.engine.threads)
    trainer = Trainer(old_run, config)
    assert trainer.state.step == 2
    assert (trainer.state.suspects, trainer.state.quarantined) == ({"clip3": 1}, ("clip2",))
    assert trainer.run()
    losses = [json.loads(line)["loss"] for line in (old_run.logs / "train.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(
        json.loads((old_run.root / "losses.json").read_text()), rel=1e-4
    )  # of the uninterrupted training
    state = old_run.checkpoints / "state"
    assert read_json(state / "step-00000004" / "format.json") == {"version": FORMAT_VERSION}
    assert read_json(state / "origin.json")["fault_tolerance.spike"] == 5.0
    assert "new training" not in caplog.text


def test_a_checkpoint_of_a_newer_version_is_refused(old_run: RunFolder) -> None:
    (old_run.checkpoints / "state" / "step-00000002" / "format.json").write_text('{"version": 9}')
    checkpoints = Checkpoints(old_run.checkpoints, None, CheckpointConfig(), ModelConfig())
    with pytest.raises(
        FormatVersionError, match=r"format version 9, .* versions 1 to 2; update .*, or delete .*state to"
    ):
        checkpoints.load()


def test_a_training_of_format_version_1_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    old, new = ({f"{section}.spike": 5.0, "seed": 0} for section in ("survive", "fault_tolerance"))
    waiting = aside(run.checkpoints / "state", old)
    waiting.mkdir(parents=True)
    (waiting / "latest").write_text("old")
    record_provenance(run, new)
    assert (run.checkpoints / "state" / "latest").read_text() == "old" and not waiting.exists()


def test_a_state_of_an_earlier_version_is_still_read() -> None:
    assert TrainState(**{"step": 3, "elapsed": 1.0, "skipped": 0, "skipped_in_a_row": 0}).best_loss is None
    assert TrainState(**asdict(TrainState(step=7, best_loss=0.5))) == TrainState(step=7, best_loss=0.5)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_recognised_in_what_torch_says(size: int) -> None:
    with pytest.raises(DiskFullError, match="checkpoint could not be written whole"), disk_guard("checkpoint"):
        torch.save(torch.zeros(size), "/dev/full")
