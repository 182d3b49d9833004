"""What a rank owes whoever launched it: not to outlive it, to save when asked, and one sentence when it fails."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from common.errors import write_traceback
from common.runs import RunFolder

LAUNCHER = "OMNIAVATAR_LAUNCHER"
"""Environment variable with the process id of `training.launch.local`; absent under torchrun and when run by hand."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Preemption notices: of Kubernetes and Docker, of a terminal, of SLURM's --signal=USR1@SECONDS."""
UNFINISHED, STUCK = 75, 76
"""Exit codes, both to be run again: asked to stop and saved (sysexits' EX_TEMPFAIL); ended because a rank hung."""

stop_asked = threading.Event()
"""Set from a signal: the training saves after the step it is in, and ends."""


def save_when_asked() -> None:
    """From now on a stop signal makes the training save and end. Only the main thread may ask for this."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop_asked.set())


def end_with_launcher() -> None:
    """From now on end at once when the launcher is gone: an orphan must not write beside the next attempt."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def failure_file(run: RunFolder, rank: int) -> Path:
    """Where a rank leaves its sentence (first line) and traceback."""
    return run.logs / f"train-failure-{rank}.txt"


def report_failure(run: RunFolder, error: Exception) -> None:
    """Leave sentence and traceback in the run's logs; without a launcher to read it, say the sentence here."""
    _say(run, write_traceback(error, _own_file(run)))


def abort_stalled(run: RunFolder, verdict: str) -> None:
    """End this process, whose main thread waits for a rank that hangs; leaves the verdict and where it waited."""
    with _own_file(run).open("w") as file:
        file.write(verdict + "\n\n")
        file.flush()
        faulthandler.dump_traceback(file)
    _say(run, verdict)
    os._exit(STUCK)


def _own_file(run: RunFolder) -> Path:
    return failure_file(run, int(os.environ.get("RANK", "0")))


def _say(run: RunFolder, sentence: str) -> None:
    if LAUNCHER not in os.environ:
        sys.stderr.write(f"Training stopped: {sentence} (traceback: {_own_file(run)})\n")
