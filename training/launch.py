"""Several ranks on this machine, quietly, with one clear sentence when one of them fails.

A rank needs only the variables that torchrun sets, so on several machines torchrun (or Ray, or SLURM) starts
`-m training.train --run RUN` without this file.
"""

import os
import socket
import subprocess
import sys
import time

from common.recipe import dump_recipe
from common.runs import RunFolder, atomic_write
from training.train import TrainConfig
from training.worker import LAUNCHER, failure_file

SECONDS_TO_SAVE = 60.0


class TrainingFailedError(RuntimeError):
    """A rank ended with an error; the message is that rank's own sentence."""


def launch(run: RunFolder, config: TrainConfig, ranks: int = 1) -> None:
    """Train `config` in `ranks` processes and return when they are done; call again to go on after any end.

    Raises TrainingFailedError. Ctrl-C lets the ranks save first.
    """
    with atomic_write(run.root / "train.yaml") as path:
        path.write_text(dump_recipe(config))
    for rank in range(ranks):
        failure_file(run, rank).unlink(missing_ok=True)
    workers = start_workers(run, ranks, config.engine.threads)
    try:
        failed = first_failure(run, workers)
    finally:
        stop_workers(workers)
    if failed is not None:
        raise TrainingFailedError(describe_failure(run, failed, workers[failed].returncode))


def start_workers(run: RunFolder, ranks: int, threads: int) -> list[subprocess.Popen[bytes]]:
    """One process per rank, in sessions of their own: a Ctrl-C at the terminal reaches them as a request to save."""
    shared = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        LAUNCHER: str(os.getpid()),
    }
    command = [sys.executable, "-m", "training.train", "--run", str(run.root)]
    return [
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True)
        for r in range(ranks)
    ]


def first_failure(run: RunFolder, workers: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ranks; the rank that failed first, as soon as one has, or None.

    The others of its group fail right after it for lack of a partner: who was killed, or spoke first, is the cause.
    """

    def order(rank: int) -> tuple[bool, float]:
        file = failure_file(run, rank)
        return workers[rank].returncode > 0, file.stat().st_mtime if file.exists() else 0.0

    while any(worker.poll() is None for worker in workers) and not any(worker.returncode for worker in workers):
        time.sleep(0.1)
    failed = [rank for rank, worker in enumerate(workers) if worker.poll()]
    return min(failed, key=order) if failed else None


def stop_workers(workers: list[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to save and end; after a minute end them."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + SECONDS_TO_SAVE
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def describe_failure(run: RunFolder, rank: int, code: int) -> str:
    """The failed rank's own sentence, or what its exit code says."""
    file = failure_file(run, rank)
    if code < 0:
        return (
            f"rank {rank} was killed by signal {-code} (memory may have run out); run the same command to go on from "
            "the last checkpoint"
        )
    if not file.exists():
        return f"rank {rank} ended with code {code}; its traceback is above"
    return f"{file.read_text().splitlines()[0]} (rank {rank}, traceback in {file})"


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
