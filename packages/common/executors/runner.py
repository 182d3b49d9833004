"""Runner: executes a loaded stage inside a worker, catches its errors and measures each unit."""

import logging
import os
import resource
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from common.executors.stage import LoadBug, Stage, StageError
from common.ledger.jsonlines import json_bytes
from common.ledger.store import PAUSE, Outcome, Unit
from common.runs import DiskFullError, disk_guard, plain

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Runner:
    """The job of a worker for one stage: turns one unit into one measured Outcome, whatever the unit raises."""

    def __init__(self, stage: Stage[Any], gpus: float = 0.0) -> None:
        self.stage, self.gpus = stage, gpus
        self.failure, self.traceback = "its models did not load.", ""

    def load(self) -> None:
        """Load the stage's models; a failure is reported by the first attempt."""
        _, error = _caught(self.stage.load)
        self.failure = _describe(error) if error else ""
        # A missing or unfit file is the user's to mend; of anything else the traceback must not be lost.
        is_bug = error is not None and not isinstance(error, (UserError, OSError))
        self.traceback = "".join(traceback.format_exception(error)) if is_bug else ""

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Run one unit. Raises DiskFullError; and when the stage did not load StageError, or LoadBug with the worker's
        traceback as a note."""
        if self.failure:
            sentence = f"Stage '{self.stage.name}' cannot start: {self.failure}"
            failure = LoadBug(sentence) if self.traceback else StageError(sentence)
            if self.traceback:
                failure.add_note(f"In the worker:\n{self.traceback}")
            raise failure
        started, cpu = _clock()
        _peak.reset()
        outcome, error = _caught(lambda: _serialised(self.stage(unit), unit))
        if outcome is None:
            assert error is not None
            outcome = Outcome(unit["unit"], "failed", message=_describe(error), error_class=type(error).__name__)
        ended, cpu_end = _clock()
        return replace(
            outcome,
            seconds=ended - started,
            cpu_seconds=cpu_end - cpu,
            gpu_seconds=(ended - started) * self.gpus,
            peak_mb=_peak.mb(),
            host=socket.gethostname(),
            attempt=attempt,
        )


def _serialised(outcome: Outcome, unit: Unit) -> Outcome:
    """The outcome with its outputs serialised to JSON in the worker, which saves the recording process this work."""
    if not isinstance(outcome, Outcome) or outcome.unit != unit["unit"]:
        raise TypeError(f"the stage returned {outcome!r} for the unit '{unit['unit']}'; expected an Outcome of it.")
    control = {name: plain(outcome.outputs[name]) for name in (PAUSE,) if name in outcome.outputs}
    return replace(outcome, outputs=control, outputs_json=json_bytes(outcome.outputs).decode())


def _caught(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    # The one broad except of the project: any error that a unit raises becomes the ledger row of that unit.
    try:
        with disk_guard():
            return call(), None
    except DiskFullError:
        raise
    except (Exception, SystemExit) as error:  # some libraries call sys.exit where they should raise
        logger.debug("caught", exc_info=True)
        return None, error


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" [{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}]" if trace else ""
    return text[:2000] + where


def _clock() -> tuple[float, float]:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)


class _PeakMemory:
    """Peak resident memory of this process between `reset` and `mb`, through files of /proc that stay open: opening
    them would cost more than a small unit does. Without /proc it is that since the process began."""

    def __init__(self) -> None:
        self._process, self._files = 0, (-1, -1)

    def reset(self) -> None:
        """Begin anew, where the kernel allows it."""
        if self._process != os.getpid():  # also after a fork, whose /proc/self is another
            self._process = os.getpid()
            self._files = _opened("/proc/self/clear_refs", os.O_WRONLY), _opened("/proc/self/status", os.O_RDONLY)
        if self._files[0] >= 0:
            with suppress(OSError):
                os.write(self._files[0], b"5")

    def mb(self) -> float:
        """The peak in MB."""
        if self._files[1] >= 0:
            _, found, rest = os.pread(self._files[1], 1 << 13, 0).partition(b"VmHWM:")
            if found:
                return int(rest.split(maxsplit=1)[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _opened(file: str, mode: int) -> int:
    try:
        return os.open(file, mode)
    except OSError:
        return -1


_peak = _PeakMemory()
