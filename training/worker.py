"""What a rank owes the process that launched it: not to outlive it, and one sentence when it fails."""

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from common.runs import RunFolder

LAUNCHER = "OMNIAVATAR_LAUNCHER"
"""Environment variable with the process id of `training.launch`; absent under torchrun and when run by hand."""


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


def tell_failure(run: RunFolder, error: Exception) -> None:
    """Leave sentence and traceback in the run's logs; without a launcher to read it, say the sentence here."""
    sentence = " ".join(str(error).split())
    file = failure_file(run, int(os.environ.get("RANK", "0")))
    file.write_text(sentence + "\n\n" + "".join(traceback.format_exception(error)))
    if LAUNCHER not in os.environ:
        sys.stderr.write(f"Training stopped: {sentence} (traceback: {file})\n")
