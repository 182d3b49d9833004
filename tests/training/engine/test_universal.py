import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.runs import DiskFullError, RunFolder
from tests.training.short_runs import train_by_ranks
from training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from training.engine.universal import ConversionError, sharded_over, to_universal
from training.train import train

AtStage = Callable[[int], TrainConfig]


def saving(config: TrainConfig) -> TrainConfig:
    """A checkpoint of every step; weights that decay so much that decaying the wrong ones would show."""
    optimizer = OptimizerConfig(lr=1e-2, warmup=2, weight_decay=0.5)
    return replace(config, optimizer=optimizer, checkpoint=CheckpointConfig(every_steps=1, keep=9))


def adapter_of(run: RunFolder) -> dict[str, Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Distance of two adapters, relative to the second."""
    assert left.keys() == right.keys()
    one, other = (torch.cat([weights[name].flatten().double() for name in right]) for weights in (left, right))
    return ((one - other).norm() / other.norm()).item()


def go_back(run: RunFolder, step: int, to: Path) -> RunFolder:
    """A copy of a run as it was when the checkpoint of `step` was its last."""
    shutil.copytree(run.root, to)
    state = to / "checkpoints" / "state"
    for later in state.glob("step-*"):
        if later.name > f"step-{step:08d}":
            shutil.rmtree(later)
    (state / "latest").write_text(f"step-{step:08d}")
    return RunFolder(to)


def test_a_training_goes_on_with_more_ranks_and_with_fewer(at_stage: AtStage, tmp_path: Path) -> None:
    config = replace(saving(at_stage(3)), steps=3)
    whole = RunFolder(tmp_path / "whole")
    train(whole, config)
    parts = go_back(whole, 1, tmp_path / "parts (1+2+1)")
    state = parts.checkpoints / "state"
    (state / ".universal-step-00000000-killed").mkdir()  # of a conversion that was killed, of an older checkpoint
    train_by_ranks(parts, replace(config, steps=2))
    train(parts, config)
    assert [sharded_over(state / f"step-{step:08d}") for step in (1, 2, 3)] == [1, 2, 1]
    assert apart(adapter_of(parts), adapter_of(whole)) < 1e-6
    # The universal form goes when a checkpoint in the usual one follows.
    assert [path.name for path in state.glob("*universal*")] == []


def test_the_universal_form_loses_nothing_at_stage_1_either(at_stage: AtStage, tmp_path: Path) -> None:
    config = saving(at_stage(1))
    whole = RunFolder(tmp_path / "whole")
    train(whole, config)
    state = whole.checkpoints / "state"
    (state / ".universal-killed").mkdir()  # as a conversion leaves it that was killed
    to_universal(state / "step-00000002", state / "universal")
    assert [path.name for path in state.glob("*universal*")] == ["universal"]
    # Two ranks' marks on one rank's checkpoint: it is not taken as it is, and what is ready is not converted again.
    parts = go_back(whole, 2, tmp_path / "parts")
    mine = parts.checkpoints / "state"
    part = next((mine / "step-00000002").glob("*_optim_states.pt"))
    shutil.copyfile(part, part.with_name(part.name.replace("rank_0", "rank_1", 1)))
    (mine / "universal").rename(mine / "universal-step-00000002")
    train(parts, config)
    assert apart(adapter_of(parts), adapter_of(whole)) == 0


def test_a_checkpoint_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    torn = tmp_path / "step-00000002"
    torn.mkdir()
    for rank in (0, 1):
        (torn / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"torn")
    with pytest.raises(ConversionError, match="step-00000002 could not be converted .* start as many as saved it"):
        to_universal(torn, tmp_path / "universal")
    assert [path.name for path in tmp_path.iterdir()] == [torn.name]


def test_a_conversion_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full_disk.py").write_text("import torch\ntorch.save(torch.zeros(100_000), '/dev/full')\n")
    (tmp_path / "state" / "step-00000002").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("training.engine.universal._CONVERTER", "full_disk")
    with pytest.raises(DiskFullError, match="universal could not be written whole"):
        to_universal(tmp_path / "state" / "step-00000002", tmp_path / "state" / "universal")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000002"]
