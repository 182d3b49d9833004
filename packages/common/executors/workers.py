"""Places where units are done: the calling process, or one spawned process each.

Each worker holds one unit at a time, so the death of a worker is always the death of a known unit. A worker outlives
the stage it was hired for when it is told to load the next one.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Hashable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Protocol

from common.ledger.store import Outcome, Unit

WorkerKind = tuple[str, float, float, str]  # "process" or "ray", CPUs, GPUs, lane


class WorkerTask(Protocol):
    """What a worker holds: loaded once, then asked for one unit after the other. Picklable before it is loaded."""

    def load(self) -> None:
        """Load the models."""

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Do one unit."""


class Worker(Protocol):
    """One place that does one unit at a time."""

    @property
    def death(self) -> tuple[type[BaseException], ...]:
        """What `load`, `submit` or their futures raise when the worker is gone."""

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Let go of the job held so far, then load this one; ends when that is done or the worker died trying."""

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit."""

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
        """Do the unit now; the future is done."""
        assert self._job is not None
        future: Future[Outcome] = Future()
        future.set_result(self._job.attempt(unit, attempt))
        return future

    def stop(self) -> None:
        """Let go of the job."""
        self._job = None


class ProcessWorker:
    """A pool of exactly one spawned process."""

    death: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_enter_process)
        self._processes: set[BaseProcess] = set()

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Begin loading in the process."""
        others = set(multiprocessing.active_children())
        loading = self._pool.submit(_load, job)
        if not self._processes:  # the pool starts its process with the first task
            self._processes = set(multiprocessing.active_children()) - others
        return loading

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit in the process."""
        return self._pool.submit(_attempt, unit, attempt)

    def stop(self) -> None:
        """Kill the process. It may die at any moment, so nothing waits for its end, and libraries that complain when
        an interpreter is taken down (DuckDB of what it leaks) have nothing to say."""
        for process in self._processes:
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Shelf:
    """Idle workers between two stages, by kind; they hold no models."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[Worker]] = {}

    def put(self, kind: Hashable, worker: Worker) -> None:
        """Keep a worker; it lets go of its job. One that is dead already is passed over."""
        try:
            worker.load(None)
        except worker.death:
            worker.stop()
        else:
            self._idle.setdefault(kind, []).append(worker)

    def take(self, kind: Hashable) -> Worker | None:
        """A worker of a kind, or None when none is kept."""
        idle = self._idle.get(kind)
        return idle.pop() if idle else None

    def count(self, kind: Hashable) -> int:
        """How many of a kind are kept."""
        return len(self._idle.get(kind, ()))

    def clear(self, besides: Hashable = None) -> None:
        """End the kept workers, those of one kind excepted."""
        for kind in [kind for kind in self._idle if kind != besides]:
            for worker in self._idle.pop(kind):
                worker.stop()


_job: WorkerTask | None = None  # of this spawned process


def _enter_process() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool is the parallelism
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C reaches the whole group: leave without a traceback
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A worker whose parent was killed would wait for ever, holding memory and devices.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load(job: WorkerTask | None) -> None:
    global _job
    _job = None
    gc.collect()  # the former models make room before the next ones are read
    if job is not None:
        job.load()
        _job = job


def _attempt(unit: Unit, attempt: int) -> Outcome:
    assert _job is not None
    return _job.attempt(unit, attempt)
