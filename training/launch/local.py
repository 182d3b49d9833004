"""Launcher of several ranks on this machine: restarts after a crash or hang, one error message for a failure.

A rank needs only the environment variables that torchrun sets, so on several machines torchrun (or Ray, or SLURM)
starts `-m training.train RUN` without this file; docs/launch.md shows how.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from common.errors import UserError
from common.process.signals import UNFINISHED, Stopped, exit_reason, oom_kills, stop_signals
from common.recipe import dump_recipe
from common.runs import RunFolder, atomic_write
from training.config import TrainConfig
from training.launch.rank import LAUNCHER, STALLED, failure_file

logger = logging.getLogger(__name__)
SECONDS_TO_REPORT = 5.0  # grace for the other ranks after one has failed; without it they cannot save


class TrainingFailedError(UserError, RuntimeError):
    """A rank ended with an error; the message is the one of that rank."""


@dataclass(frozen=True)
class Failure:
    """Why a group of ranks ended. `restartable`: a rank was killed or hung, which a restart may get past."""

    sentence: str
    restartable: bool


def launch(run: RunFolder, config: TrainConfig, ranks: int = 1) -> None:
    """Train `config` in `ranks` processes and return when they are done; call again to resume after any end.

    After a rank was killed or hangs, all are restarted from the last checkpoint, `fault_tolerance.restarts` times
    without a new checkpoint in between. A stop signal (`common.process.signals`) lets the ranks save first, and raises Stopped.
    Raises TrainingFailedError.
    """
    with atomic_write(run.root / "train.yaml") as path:
        path.write_text(dump_recipe(config))
    restarts, reached = config.fault_tolerance.restarts, last_checkpoint(run)
    try:
        with stop_signals():
            while (failure := run_group(run, config, ranks)) is not None:
                if last_checkpoint(run) != reached:
                    restarts, reached = config.fault_tolerance.restarts, last_checkpoint(run)
                if not failure.restartable or restarts == 0:
                    raise TrainingFailedError(failure.sentence)
                restarts -= 1
                logger.warning("%s. Restarting all ranks (%d restarts left)", failure.sentence, restarts)
    except Stopped as stop:
        stop.add_note(saved_sentence(run))
        raise


def run_group(run: RunFolder, config: TrainConfig, ranks: int) -> Failure | None:
    """Run all ranks once, until all are done or one has failed."""
    for rank in range(ranks):
        failure_file(run, rank).unlink(missing_ok=True)
    workers, oom_kills_before = start_workers(run, ranks, config.engine.threads), oom_kills()
    patience = config.fault_tolerance.save_seconds
    try:
        failed = first_failure(run, workers)
        patience = SECONDS_TO_REPORT
    finally:
        stop_workers(workers, patience)
    if failed is None:
        return None
    code = workers[failed].returncode
    return Failure(describe_failure(run, failed, code, oom_kills_before), restartable=code < 0 or code == STALLED)


def saved_sentence(run: RunFolder) -> str:
    """What a training that was stopped goes on from."""
    checkpoint = last_checkpoint(run)
    return f"the training is saved as checkpoint {checkpoint}" if checkpoint else "no step of the training is saved yet"


def last_checkpoint(run: RunFolder) -> str:
    """Name of the newest checkpoint, "" before the first."""
    latest = run.checkpoints / "state" / "latest"
    return latest.read_text("utf-8", "replace") if latest.exists() else ""


def start_workers(run: RunFolder, ranks: int, threads: int) -> list[subprocess.Popen[bytes]]:
    """One process per rank, each in a session of its own, so that Ctrl-C reaches them through `stop_workers` only."""
    shared = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        LAUNCHER: str(os.getpid()),
    }
    command = [sys.executable, "-m", "training.train", str(run.root)]
    return [
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True)
        for r in range(ranks)
    ]


def first_failure(run: RunFolder, workers: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ranks; returns the rank that caused a failure, as soon as one has failed, or None.

    The other ranks fail right after it, when their collectives lose a peer. So a killed rank comes first, then one that
    reported a hang, then the one with the earliest failure file.
    """

    def order(rank: int) -> tuple[bool, bool, float]:
        file, code = failure_file(run, rank), workers[rank].returncode
        return code > 0, code != STALLED, file.stat().st_mtime if file.exists() else 0.0

    while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
        time.sleep(0.1)
    failed = [rank for rank, worker in enumerate(workers) if worker.poll()]
    return min(failed, key=order) if failed else None


def stop_workers(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask the running ranks to save and exit; kill them after `seconds`."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + seconds
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def describe_failure(run: RunFolder, rank: int, code: int, oom_kills_before: int = 0) -> str:
    """The failed rank's own error message, or an explanation of its exit code."""
    file = failure_file(run, rank)
    if code < 0:
        reason = exit_reason(code, oom_kills_before)
        return f"rank {rank} {reason}; run the same command to resume from the last checkpoint"
    if code == UNFINISHED:
        return f"rank {rank} was asked to stop and the training has been saved; run the same command to resume"
    if not file.exists():
        return f"rank {rank} ended with code {code}; its traceback is above"
    return f"{file.read_text().splitlines()[0]} (rank {rank}, traceback in {file})"


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
