"""Supervisor of the measuring process: ends a row that outlasts its time, and goes on in a new process after a crash.

A hung kernel, a segmentation fault or a CUDA context broken by an illegal access takes the process with it; every
figure until then is in the report, and a new process runs the rows that are not. Imports no torch.
"""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.gpu_drill.report import Report

BROKEN = 79  # exit code of a measuring process whose device answers no more
RESTART = 30.0  # seconds: with less left, no new process is started
POLL = 0.2


def supervise(command: Sequence[str], path: Path, seconds: float, resume: bool = False) -> int:
    """Run the measuring command, which writes the report `path`, until all rows are done or `seconds` are over.

    The command is given `--minutes`, and `--resume` when it goes on after a crash. Returns its last exit code.
    """
    deadline = time.monotonic() + seconds
    while True:
        minutes = f"{(deadline - time.monotonic()) / 60:.4f}"
        began = time.time()
        process = subprocess.Popen([*command, "--minutes", minutes, *(["--resume"] if resume else [])])
        reason = _watch(process, path, began, deadline)
        code = process.returncode
        report = _written_since(path, began)
        if code == 0 or report is None:
            return code
        goes_on = code == BROKEN or report.running is not None
        if report.running:
            report.fail(report.running["row"], reason or _ending(code), "no traceback: the process was ended")
            report.end()
        if not goes_on or deadline - time.monotonic() < RESTART:
            _leave_out_rest(report)
            return code
        resume = True


def _written_since(path: Path, began: float) -> Report | None:
    """The report, unless it is of an earlier process."""
    # A file system may keep whole seconds.
    return Report.load(path) if path.exists() and path.stat().st_mtime >= began - 1 else None


def _watch(process: subprocess.Popen[bytes], path: Path, began: float, deadline: float) -> str:
    """Wait for the end of the process, or end it; why it was ended, "" when it ended by itself."""
    while process.poll() is None:
        time.sleep(POLL)
        report = _written_since(path, began)
        running = report.running if report else None
        slow = running is not None and time.time() > running["began"] + running["box"]
        if slow or time.monotonic() > deadline:
            process.send_signal(signal.SIGUSR1)  # it prints the stack of every thread
            time.sleep(POLL)
            process.kill()
            process.wait()
            return f"took longer than {running['box']:.0f} s" if slow and running else "the time of the drill was over"
    return ""


def _ending(code: int) -> str:
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the process {how}"


def _leave_out_rest(report: Report) -> None:
    named = {row["row"] for row in report.rows}
    for row in report.machine.get("rows", []):
        if row not in named:
            report.leave_out(row, "no time is left")
