"""Workers: the calling process itself, or one spawned process each.

A worker runs one unit at a time, so the crash of a worker can always be attributed to one unit. Workers can be reused:
after one stage they load the job of the next.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Protocol

from common.ledger.store import Outcome, Unit
from common.process.signals import STOP_SIGNALS, exit_reason, oom_kills

COLLECT_SECONDS = 2.0  # at most, until the exit code of a dead process is known
WorkerKind = tuple[str, float, float, str]  # "process" or "ray", CPUs, GPUs, lane


class WorkerTask(Protocol):
    """The job of a worker: loaded once, then run on one unit after the other. Picklable before it is loaded."""

    def load(self) -> None:
        """Load the models."""

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Run one unit."""


class Worker(Protocol):
    """Runs one unit at a time."""

    @property
    def death(self) -> tuple[type[BaseException], ...]:
        """Errors that `load`, `submit` or their futures raise when the worker is gone."""

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Release the current job, then load this one; the future ends when that is done or the worker has died."""

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Start one unit."""

    def death_reason(self) -> str:
        """Why the worker is gone, as "was killed by signal SIGTERM"; called after one of the errors of `death`."""

    def stop(self) -> None:
        """End the worker, in the middle of a unit if it has one."""


class InProcessWorker:
    """The calling process itself."""

    death: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self._job: WorkerTask | None = None

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Load the job now; the future is done."""
        self._job = job
        if job is not None:
            job.load()
        loaded: Future[None] = Future()
        loaded.set_result(None)
        return loaded

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Run the unit now; the future is done."""
        assert self._job is not None
        future: Future[Outcome] = Future()
        future.set_result(self._job.attempt(unit, attempt))
        return future

    def death_reason(self) -> str:
        """Never called: this process lives."""
        return "was lost"

    def stop(self) -> None:
        """Release the job."""
        self._job = None


class ProcessWorker:
    """A pool of exactly one spawned process."""

    death: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self) -> None:
        _start_tracker()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_enter_process)
        self._processes: set[BaseProcess] = set()
        self._oom_kills = oom_kills()

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Start loading in the process."""
        others = set(multiprocessing.active_children())
        loading = self._pool.submit(_load, job)
        if not self._processes:  # the pool starts its process with the first task
            self._processes = set(multiprocessing.active_children()) - others
        return loading

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Start one unit in the process."""
        return self._pool.submit(_attempt, unit, attempt)

    def death_reason(self) -> str:
        """From the exit code of the process, which the pool may collect a moment after it has broken."""
        deadline = time.monotonic() + COLLECT_SECONDS
        while None in (codes := [process.exitcode for process in self._processes]) and time.monotonic() < deadline:
            time.sleep(0.01)
        return exit_reason(codes[0] if codes else None, self._oom_kills)

    def stop(self) -> None:
        """Kill the process. No clean shutdown: units are safe against a kill at any moment, and libraries such as
        DuckDB print warnings about leaks when an interpreter shuts down."""
        for process in self._processes:
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


class IdleWorkers:
    """Workers kept for reuse by the next stage, by kind; they hold no models."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[Worker]] = {}

    def put(self, kind: Hashable, worker: Worker) -> None:
        """Keep a worker and release its job. A worker that is already dead is dropped."""
        try:
            worker.load(None)
        except worker.death:
            worker.stop()
        else:
            self._idle.setdefault(kind, []).append(worker)

    def take(self, kind: Hashable) -> Worker | None:
        """A worker of this kind, or None when there is none."""
        idle = self._idle.get(kind)
        return idle.pop() if idle else None

    def count(self, kind: Hashable) -> int:
        """Number of idle workers of this kind."""
        return len(self._idle.get(kind, ()))

    def clear(self, keep: Hashable = None) -> None:
        """Stop the idle workers, except those of the kind `keep`."""
        for kind in [kind for kind in self._idle if kind != keep]:
            for worker in self._idle.pop(kind):
                worker.stop()


def _start_tracker() -> None:
    """Start multiprocessing's tracker of semaphores, unless it runs, such that it outlives a stop of the process group
    and is silent about what it then removes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # a blocked signal stays so in the new process
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: WorkerTask | None = None  # of this spawned process


def _enter_process() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool is the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole process group: no traceback
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A worker whose parent was killed would wait forever and hold memory and devices.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load(job: WorkerTask | None) -> None:
    global _job
    _job = None
    gc.collect()  # free the previous models before the next ones are read
    if job is not None:
        job.load()
        _job = job


def _attempt(unit: Unit, attempt: int) -> Outcome:
    assert _job is not None
    return _job.attempt(unit, attempt)
