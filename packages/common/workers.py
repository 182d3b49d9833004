"""Places where units are done: the calling process, or one spawned process each, and the crew they form.

Each worker holds one unit at a time, so the death of a worker is always the death of a known unit.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from common.ledger import Outcome

Unit = dict[str, Any]


class Job(Protocol):
    """What a worker holds: loaded once, then asked for one unit after the other. Picklable before it is loaded."""

    def load(self) -> None:
        """Load the models."""

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Do one unit."""


class Worker(Protocol):
    """One place that does one unit at a time."""

    @property
    def death(self) -> tuple[type[BaseException], ...]:
        """What a future raises when the worker is gone."""

    @property
    def loading(self) -> "Future[None]":
        """Ends when the models are loaded or the worker died trying."""

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit."""

    def stop(self, now: bool) -> None:
        """End the worker, in the middle of a unit if `now`."""


class InProcessWorker:
    """The calling process itself."""

    death: tuple[type[BaseException], ...] = ()

    def __init__(self, job: Job) -> None:
        self._job = job
        self.loading: Future[None] = Future()
        job.load()
        self.loading.set_result(None)

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Do the unit now; the future is done."""
        future: Future[Outcome] = Future()
        future.set_result(self._job.attempt(unit, attempt))
        return future

    def stop(self, now: bool) -> None:
        """Nothing to end."""


class ProcessWorker:
    """A pool of exactly one spawned process."""

    death: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, job: Job) -> None:
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_enter_process, initargs=(job,))
        self.loading = self._pool.submit(_load)
        self._processes: set[BaseProcess] = set(multiprocessing.active_children()) - others

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit in the process."""
        return self._pool.submit(_attempt, unit, attempt)

    def stop(self, now: bool) -> None:
        """End the process."""
        if now:
            for process in self._processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


_job: Job  # of this spawned process


def _enter_process(job: Job) -> None:
    global _job
    _job = job
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool is the parallelism
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C reaches the whole group: leave without a traceback
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A worker whose parent was killed would wait for ever, holding memory and devices.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load() -> None:
    _job.load()


def _attempt(unit: Unit, attempt: int) -> Outcome:
    return _job.attempt(unit, attempt)


@dataclass
class Crew:
    """Workers of one kind; the idle ones wait here."""

    hire: Callable[[], Worker]
    workers: list[Worker] = field(default_factory=list)
    idle: list[Worker] = field(default_factory=list)
    proven: bool = False  # some worker has done some unit

    def grow(self) -> None:
        """Take one more worker on."""
        worker = self.hire()
        self.workers.append(worker)
        self.idle.append(worker)

    def take_idle(self, wanted: int) -> list[Worker]:
        """Up to `wanted` idle workers, now busy."""
        taken, self.idle = self.idle[:wanted], self.idle[wanted:]
        return taken

    def give_back(self, worker: Worker) -> None:
        """The worker has done its unit."""
        self.proven = True
        self.idle.append(worker)

    def replace(self, worker: Worker) -> None:
        """A dead worker makes room for a fresh one."""
        self.workers.remove(worker)
        worker.stop(now=True)
        self.grow()

    def disband(self, now: bool) -> None:
        """End all workers, in the middle of their units if `now`."""
        for worker in self.workers:
            worker.stop(now)
        self.workers, self.idle = [], []
