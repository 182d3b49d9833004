import time
from dataclasses import replace

import pytest
import torch

from common.recipe import dump_recipe
from common.runs import RunFolder
from training.checkpoint import CheckpointConfig
from training.launch import (
    TrainingFailedError,
    describe_failure,
    first_failure,
    launch,
    start_workers,
    stop_workers,
)
from training.train import TrainConfig, train


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def steps_of(run: RunFolder) -> int:
    log = run.logs / "train.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_two_sharded_ranks_survive_a_kill_and_train_what_one_process_trains(
    config: TrainConfig, run: RunFolder
) -> None:
    alone = RunFolder(run.root.with_name("alone"))
    train(alone, config)
    sharded = replace(config, engine=replace(config.engine, stage=3), checkpoint=CheckpointConfig(every_steps=2))
    run.root.mkdir()
    (run.root / "train.yaml").write_text(dump_recipe(replace(sharded, steps=1000)))
    workers = start_workers(run, ranks=2, threads=1)
    while steps_of(run) < 3:
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.02)
    workers[1].kill()
    assert first_failure(run, workers) == 1
    stop_workers(workers)
    assert "rank 1 was killed by signal 9" in describe_failure(run, 1, workers[1].returncode)
    # What it did beyond the fourth step is not part of the comparison: go back to where a short run would be.
    state = run.checkpoints / "state"
    (state / "latest").write_text("step-00000002")
    launch(run, sharded, ranks=2)
    expected, trained = adapter_of(alone), adapter_of(run)
    assert expected.keys() == trained.keys()
    assert max((trained[name] - value).abs().max().item() for name, value in expected.items()) < 1e-5
    assert steps_of(run) == 4


def test_a_rank_that_fails_says_why_in_one_sentence(config: TrainConfig, run: RunFolder) -> None:
    lost = replace(config, model=replace(config.model, base=run.root / "nowhere"))
    with pytest.raises(TrainingFailedError, match=r"nowhere has no config\.json.*rank 0, traceback in") as failure:
        launch(run, lost)
    assert "\n" not in str(failure.value)
    assert "Traceback" in (run.logs / "train-failure-0.txt").read_text()
