import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil
import pytest
import torch

from common.runs import RunFolder
from training.config import CheckpointConfig, FaultToleranceConfig, TrainConfig
from training.launch.local import TrainingFailedError, last_checkpoint, launch
from training.train import train


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def log_of(run: RunFolder) -> list[dict[str, float]]:
    log = run.logs / "train.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_step(run: RunFolder, step: int) -> None:
    while len(log_of(run)) < step:
        time.sleep(0.02)


def ranks_of(run: RunFolder) -> dict[int, psutil.Process]:
    """The ranks of a run that were launched from this process and live."""
    found = {}
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if str(run.root) in child.cmdline():
                found[int(child.environ()["RANK"])] = child
    return found


@contextmanager
def beside(action: Callable[[], None]) -> Iterator[None]:
    """Run `action` in a thread while the main thread launches a training."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    yield
    thread.join(60)


@pytest.mark.parametrize("killed_before", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_hung_ranks_are_restarted_and_the_result_equals_an_undisturbed_run(
    config: TrainConfig, run: RunFolder, caplog: pytest.LogCaptureFixture, killed_before: bool
) -> None:
    """One that is killed is found at once; after it, with `killed_before`, a second restart is one with progress."""
    config = replace(config, steps=12 if killed_before else 6)
    train(alone := RunFolder(run.root.with_name("alone")), config)
    tolerance = FaultToleranceConfig(
        stall_seconds=6, restarts=1
    )  # one restart without progress: there is some between the two

    def harm() -> None:
        wait_for_step(run, 2)
        if killed_before:
            killed = ranks_of(run)[1]
            killed.kill()
            while ranks_of(run).get(1, killed).pid == killed.pid:
                time.sleep(0.02)
            wait_for_step(run, 6)
        ranks_of(run)[0].suspend()

    with beside(harm):
        launch(run, replace(config, fault_tolerance=tolerance, checkpoint=CheckpointConfig(every_steps=1)), ranks=2)
    *before, last = (record.getMessage() for record in caplog.records if record.name == "training.launch.local")
    assert ["rank 1 was killed by signal SIGKILL" in message for message in before] == [True] * killed_before
    assert "rank 0 stalled: its last heartbeat was" in last and "(rank 1, traceback in" in last
    assert [row["step"] for row in log_of(run)] == list(range(1, config.steps + 1))
    expected, trained = adapter_of(alone), adapter_of(run)
    # Two halves are added in either case, by the engine or between the ranks, so not a bit differs.
    assert expected.keys() == trained.keys()
    assert all(torch.equal(trained[name], value) for name, value in expected.items())


def test_a_preemption_signal_to_the_launcher_lets_the_ranks_save(config: TrainConfig, run: RunFolder) -> None:
    endless = replace(config, steps=100_000, checkpoint=CheckpointConfig(every_seconds=0))

    def notice() -> None:
        wait_for_step(run, 3)
        os.kill(os.getpid(), signal.SIGUSR1)

    with beside(notice), pytest.raises(KeyboardInterrupt):
        launch(run, endless)
    assert last_checkpoint(run) == f"step-{len(log_of(run)):08d}"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_restarts_without_progress_are_limited(config: TrainConfig, run: RunFolder) -> None:
    def kill_each_start() -> None:
        seen: set[int] = set()
        while len(seen) < 2:
            for rank in ranks_of(run).values():
                seen.add(rank.pid)
                rank.kill()
            time.sleep(0.02)

    with beside(kill_each_start), pytest.raises(TrainingFailedError, match="rank 0 was killed by signal SIGKILL"):
        launch(run, replace(config, fault_tolerance=FaultToleranceConfig(restarts=1)))


def test_a_failed_rank_is_reported_in_one_sentence(config: TrainConfig, run: RunFolder) -> None:
    lost = replace(config, model=replace(config.model, base=run.root / "nowhere"))
    with pytest.raises(TrainingFailedError, match=r"nowhere has no config\.json.*rank 0, traceback in") as failure:
        launch(run, lost)
    assert "\n" not in str(failure.value)
    assert "Traceback" in (run.logs / "train-failure-0.txt").read_text()
