import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.runs import RunFolder
from common.shards.store import ShardReader, ShardWriter
from tests.training.data.test_windows import clips_of_step
from training.config import DataConfig, FaultToleranceConfig, TrainConfig
from training.data.windows import BadSamplesError, ClipWindows
from training.fault_tolerance import (
    TrainingDivergedError,
    is_spike,
    step_skipped,
    step_taken,
    with_unreadable,
    worst_clip,
)
from training.state import TrainState
from training.train import train

DATA, SEED = DataConfig(batch=2, micro_batches=2), 5  # three steps an epoch


@pytest.fixture(scope="module")
def loud_clip(shards: Path) -> str:
    """A clip of the second step of the first epoch."""
    return clips_of_step(ClipWindows(shards, DATA, SEED), 1)[0]


@pytest.fixture(scope="module")
def loud_shards(shards: Path, loud_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, with that clip a hundred times as large as it should be."""
    folder = tmp_path_factory.mktemp("loud")
    reader = ShardReader(shards)
    with ShardWriter(folder, 16) as writer:
        for number, clip_id in enumerate(reader.index["clip_id"].to_pylist()):
            tensors, meta = reader.sample(number)
            if clip_id == loud_clip:
                tensors["latents"] = 100 * tensors["latents"]
            writer.add(clip_id, tensors, meta)
    (folder / "constants.safetensors").write_bytes((shards / "constants.safetensors").read_bytes())
    return folder


@pytest.fixture
def loud(config: TrainConfig, loud_shards: Path) -> TrainConfig:
    """A step is judged from the second on."""
    tolerance = FaultToleranceConfig(spike=5, history=2, quarantine_after=2)
    return replace(config, shards=loud_shards, data=DATA, seed=SEED, fault_tolerance=tolerance)


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.logs / name).read_text().splitlines()]


def test_a_loud_clip_is_skipped_then_quarantined_and_a_resumed_run_decides_the_same(
    loud: TrainConfig, loud_clip: str, run: RunFolder
) -> None:
    parts = RunFolder(run.root.with_name("parts"))
    train(run, replace(loud, steps=9))
    skipped = rows(run, "skipped.jsonl")
    assert [(row["reason"], row["worst"]) for row in skipped] == [("spike", loud_clip)] * 2
    assert {(row["step"] - 1) // 3 for row in skipped} == {0, 1}  # in the first and in the second epoch
    for row in skipped:
        assert row["loss"] > 5 * row["usual_loss"] and row["losses"][row["clips"].index(loud_clip)] == max(
            row["losses"]
        )
    assert rows(run, "train.jsonl")[-1] | {"skipped": 2, "quarantined": 1} == rows(run, "train.jsonl")[-1]
    for steps in (skipped[0]["step"], skipped[1]["step"], 9):  # stopped right after each decision
        train(parts, replace(loud, steps=steps))
    whole, resumed = adapter_of(run), adapter_of(parts)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert rows(parts, "skipped.jsonl") == skipped
    assert [row["loss"] for row in rows(parts, "train.jsonl")] == [row["loss"] for row in rows(run, "train.jsonl")]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_spike_moves_nothing_at_any_stage(loud: TrainConfig, run: RunFolder, stage: int) -> None:
    train(plain := RunFolder(run.root.with_name("plain")), replace(loud, steps=3))
    config = replace(loud, engine=replace(loud.engine, stage=stage))
    train(run, replace(config, steps=1))
    before = adapter_of(run)
    train(run, replace(config, steps=2))
    assert [row["step"] for row in rows(run, "skipped.jsonl")] == [2]
    assert all(torch.equal(before[name], value) for name, value in adapter_of(run).items())
    train(run, replace(config, steps=3))
    expected, trained = adapter_of(plain), adapter_of(run)
    assert any(not torch.equal(before[name], value) for name, value in trained.items())
    assert all((expected[name] - value).abs().max() < 1e-5 for name, value in trained.items())


def test_a_spike_is_told_from_the_median_once_there_is_a_history() -> None:
    config = FaultToleranceConfig(spike=5, history=10)
    assert not is_spike(100.0, [1.0] * 4, config)
    history = [1.0, 1.1, 0.9, 50.0, 1.0]  # one outlier that was taken does not hide the next
    assert is_spike(5.1, history, config) and not is_spike(4.9, history, config)
    assert not is_spike(math.nan, history, config) and not is_spike(math.inf, history, config)
    assert not is_spike(100.0, history, replace(config, spike=0))


def test_the_worst_clip_is_the_suspect_unless_no_loss_is_finite() -> None:
    assert worst_clip({"a": 1.0, "b": 3.0, "c": 2.0}) == "b"
    assert worst_clip({"a": 1.0, "b": math.nan, "c": 9.0}) == "b"
    assert worst_clip({"a": math.nan, "b": math.inf}) is None


def test_three_times_the_worst_is_quarantined_and_the_history_is_bounded() -> None:
    config, state = FaultToleranceConfig(history=4), TrainState()
    for _ in range(3):
        assert state.quarantined == ()
        state = step_taken(step_skipped(state, {"a": 1.0, "b": 9.0}, config), 1.0, config)
    assert (state.quarantined, state.suspects, state.skipped, state.step) == (("b",), {}, 3, 6)
    for number in range(9):
        state = step_taken(state, float(number), config)
    assert state.losses == (5.0, 6.0, 7.0, 8.0)


def test_many_skips_in_a_row_and_many_bad_samples_end_a_training() -> None:
    config, state = FaultToleranceConfig(), TrainState()
    for _ in range(9):
        state = step_skipped(state, {"a": math.nan, "b": math.nan}, config)
    assert state.suspects == {}
    with pytest.raises(TrainingDivergedError, match="10 consecutive steps up to 10 .* lower optimizer.lr"):
        step_skipped(state, {"a": math.nan}, config)
    state = with_unreadable(with_unreadable(TrainState(), "a", 2), "b", 2)
    with pytest.raises(BadSamplesError, match="3 clips cannot be read, data.max_bad is 2"):
        with_unreadable(state, "c", 2)


@pytest.mark.parametrize(("wrong", "said"), [({"spike": 0.5}, "spike is 0.5"), ({"quarantine_after": 0}, "1 or more")])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    build: Callable[..., FaultToleranceConfig] = FaultToleranceConfig
    with pytest.raises(ValueError, match=said):
        build(**wrong)


def test_a_corrupt_sample_is_named_replaced_and_counted_up_to_a_limit(
    config: TrainConfig, shards: Path, run: RunFolder, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(shards, torn)
    tar = sorted(torn.glob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    tar.write_bytes(content)
    train(run, replace(config, shards=torn, data=DATA, steps=6))  # two epochs: each clip is drawn twice, and told once
    (bad,) = rows(run, "bad_samples.jsonl")
    assert bad["clip"].startswith("clip") and bad["rank"] == 0 and tar.name in bad["message"]
    assert rows(run, "train.jsonl")[-1]["bad"] == 1
    with pytest.raises(BadSamplesError, match=f"data.max_bad is 0.*{bad['clip']}"):
        train(RunFolder(tmp_path / "strict"), replace(config, shards=torn, data=replace(DATA, max_bad=0)))
