"""Stop signals of a command, and the reason why a child process ended."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; `kill`, `timeout`, Kubernetes, Docker; a terminal or an ssh session that is gone; SLURM's notice."""
UNFINISHED = 75
"""Exit code of what was stopped by a signal and goes on when run again (EX_TEMPFAIL of sysexits.h)."""
CGROUP = Path("/proc/self/cgroup")


class Stopped(KeyboardInterrupt):
    """A stop signal came; `name` is that of the signal. `add_note` says what was saved and how to go on.

    A KeyboardInterrupt, so that what cleans up after Ctrl-C cleans up after the others too.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


_came: Stopped | None = None


def _stop(number: int, frame: FrameType | None) -> None:
    global _came
    if _came is not None:
        os._exit(UNFINISHED)
    _came = Stopped(number)
    raise _came


def stop_that_came() -> Stopped | None:
    """The stop of this `stop_signals` context, for libraries (DuckDB) that make another error of what it raises."""
    return _came


@contextmanager
def stop_signals() -> Iterator[None]:
    """Context in which the first stop signal raises Stopped, and the second ends the process at once, with code 75.

    No effect outside the main thread or in another such context. A signal that the parent wants ignored (nohup) stays
    ignored.
    """
    global _came
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _stop:
        yield
        return
    _came = None
    with keep_handlers():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield


@contextmanager
def draining(stop: Callable[[], object], seconds: float) -> Iterator[None]:
    """Context, inside `stop_signals`, in which the first stop signal but Ctrl-C calls `stop` instead of raising
    Stopped, which is raised at the end of the block, or after so many seconds at the latest."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not _stop:
        yield
        return

    def drain(number: int, frame: FrameType | None) -> None:
        global _came
        if _came is not None:
            os._exit(UNFINISHED)
        _came = Stopped(number)
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        stop()

    def late(number: int, frame: FrameType | None) -> None:
        assert _came is not None
        raise _came

    before = signal.getsignal(signal.SIGALRM)
    with keep_handlers():
        for number in STOP_SIGNALS:
            if number != signal.SIGINT and signal.getsignal(number) is _stop:
                signal.signal(number, drain)
        try:
            yield
        finally:
            if _came is not None:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, before)
    if _came is not None:
        raise _came


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Context that puts the handlers of the stop signals back at its end; Ray replaces them by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def oom_kills() -> int:
    """Number of processes that the kernel has killed for want of memory, in this control group or else this machine."""
    for file in (*_memory_files(), Path("/proc/vmstat")):
        try:
            words = file.read_text().split()
        except OSError:
            continue
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1])
    return 0


def exit_reason(code: int | None, oom_kills_before: int) -> str:
    """Why a child process ended, from its exit code as subprocess and multiprocessing have it (-9: by signal 9).

    Memory is named only where the kernel has counted a kill for want of it since `oom_kills_before`.
    """
    if code is None:
        return "was lost"
    if code >= 0:
        return f"ended with exit code {code}"
    if -code == signal.SIGKILL and oom_kills() > oom_kills_before:
        return "was killed by the kernel because memory ran out"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by signal {names.get(-code, -code)}"


def _memory_files() -> list[Path]:
    """Files with the counter of this control group, of both versions of control groups; the root's in a container."""
    files = []
    lines = CGROUP.read_text().splitlines() if CGROUP.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            files += [Path(f"/sys/fs/cgroup{path}/memory.events"), Path("/sys/fs/cgroup/memory.events")]
        elif "memory" in controllers.split(","):
            files += [
                Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"),
                Path("/sys/fs/cgroup/memory/memory.oom_control"),
            ]
    return files
