"""Workers: the calling process itself, or one spawned process each.

A worker runs the tasks of a `common.executors.host.Host`, one unit at a time; it may have more waiting.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from common.process.signals import STOP_SIGNALS, exit_reason, oom_kills

T = TypeVar("T")
COLLECT_SECONDS = 2.0  # at most, until the exit code of a dead process is known


class Worker(Protocol):
    """Runs the tasks of a `Host`, in the order in which they are given."""

    ahead: int  # hand-outs that it may have waiting behind the one in work
    host: Any  # as it was given
    started: "Future[Any]"  # done when it can take tasks; one that waits for room on a cluster is not

    @property
    def death(self) -> tuple[type[BaseException], ...]:
        """Errors that `load`, `submit` or their futures raise when the worker is gone."""

    def load(self, step: int) -> "Future[list[int]]":
        """Load the models of a step; the future tells the steps whose models are held."""

    def submit(self, tasks: Sequence[Any]) -> "Future[list[Any]]":
        """Run tasks of steps whose models are held."""

    def death_reason(self) -> str:
        """Why the worker is gone, as "was killed by signal SIGTERM"; called after one of the errors of `death`."""

    def stop(self) -> None:
        """End the worker, in the middle of a unit if it has one."""


class InProcessWorker:
    """The calling process itself: every outcome is recorded before the next unit begins."""

    ahead = 0
    death: tuple[type[BaseException], ...] = ()

    def __init__(self, host: Any) -> None:
        self.host, self.started = host, _done(None)

    def load(self, step: int) -> "Future[list[int]]":
        """Load now; the future is done."""
        return _done(self.host.load(step))

    def submit(self, tasks: Sequence[Any]) -> "Future[list[Any]]":
        """Run the tasks now; the future is done. Raises what they raise."""
        return _done(self.host.run(tasks))

    def death_reason(self) -> str:
        """Never called: this process lives."""
        return "was lost"

    def stop(self) -> None:
        """Release the models."""
        del self.host


def _done(result: T) -> "Future[T]":
    future: Future[T] = Future()
    future.set_result(result)
    return future


class ProcessWorker:
    """A pool of exactly one spawned process."""

    ahead = 1
    death: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, host: Any) -> None:
        _start_tracker()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_enter_process)
        self._oom_kills = oom_kills()
        others = set(multiprocessing.active_children())
        self.host = host
        pickle.dumps(host)  # raises here what would be lost in the thread of the pool
        self.started = self._pool.submit(_start, host)  # the pool starts its process with the first task
        self._processes: set[BaseProcess] = set(multiprocessing.active_children()) - others

    def load(self, step: int) -> "Future[list[int]]":
        """Start loading in the process."""
        return self._pool.submit(_load, step)

    def submit(self, tasks: Sequence[Any]) -> "Future[list[Any]]":
        """Start the tasks in the process."""
        return self._pool.submit(_run, tasks)

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


_host: Any = None  # of this spawned process


def _enter_process() -> None:
    gc.disable()  # until the first models are loaded: imports make many objects, which all stay
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool is the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole process group: no traceback
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    # A worker whose parent was killed would wait forever and hold memory and devices.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start(host: Any) -> None:
    global _host
    _host = host


def _load(step: int) -> list[int]:
    assert _host is not None
    try:
        return _host.load(step)
    finally:
        gc.enable()


def _run(tasks: Sequence[Any]) -> list[Any]:
    assert _host is not None
    gc.enable()
    return _host.run(tasks)
