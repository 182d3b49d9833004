"""Process-level duties of a rank: exit with the launcher, checkpoint on SIGTERM, report a one-line failure."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from common.errors import write_traceback
from common.process.signals import STOP_SIGNALS
from common.runs import RunFolder

LAUNCHER = "OMNIAVATAR_LAUNCHER"
"""Environment variable with the process id of `training.launch.local`; unset under torchrun and when run by hand."""
AGENT = "TORCHELASTIC_RUN_ID"  # set by torchrun, whose agent is the parent of its ranks
STALLED = 76
"""Exit code of a rank that found another one hanging; after it and after UNFINISHED a training is to be run again."""

stop_requested = threading.Event()
"""Set by a signal handler: the training saves after the current step, and ends."""


def save_on_signal() -> None:
    """Install handlers that make the training save and end on a stop signal. Main thread only."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop_requested.set())


def exit_with_launcher() -> None:
    """Exit as soon as the launcher, ours or an agent of torchrun, is gone: an orphan must not write to the run folder
    of the next attempt, nor keep the ranks of other machines waiting."""
    launcher = int(os.environ.get(LAUNCHER) or (os.getppid() if AGENT in os.environ else 0))
    if not launcher:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stop_file(run: RunFolder) -> Path:
    """File by which a launcher that has no other way to the ranks (Ray) asks them to save and to end."""
    return run.logs / "train-stop"


def stop_with_launcher(run: RunFolder) -> None:
    """Set `stop_requested` as soon as there is a `stop_file`."""

    def watch() -> None:
        while not stop_file(run).exists():
            time.sleep(0.5)
        stop_requested.set()

    threading.Thread(target=watch, daemon=True).start()


def failure_file(run: RunFolder, rank: int) -> Path:
    """File for the error message (first line) and traceback of a failed rank."""
    return run.logs / f"train-failure-{rank}.txt"


def report_failure(run: RunFolder, error: Exception) -> None:
    """Write error message and traceback to the run's logs; without a launcher to read them, print the message."""
    _print_failure(run, write_traceback(error, _own_file(run)))


def exit_stalled(run: RunFolder, verdict: str) -> None:
    """End this process, whose main thread waits for a hung rank; writes the verdict and the stack of every thread."""
    with _own_file(run).open("w") as file:
        file.write(verdict + "\n\n")
        file.flush()
        faulthandler.dump_traceback(file)
    _print_failure(run, verdict)
    os._exit(STALLED)


def _own_file(run: RunFolder) -> Path:
    return failure_file(run, int(os.environ.get("RANK", "0")))


def _print_failure(run: RunFolder, sentence: str) -> None:
    if LAUNCHER not in os.environ:
        sys.stderr.write(f"Training stopped: {sentence} (traceback: {_own_file(run)})\n")
