import json
import os
import sys
import time
from pathlib import Path

import pytest

from pipelines.gpu_drill.report import Report
from pipelines.gpu_drill.supervise import BROKEN, supervise

# A measuring process: `first` is measured, then what a test adds happens within `second`; resumed, it ends well.
HEAD = """
import json, os, signal, sys, time
from pathlib import Path
path = Path(sys.argv[1])
def write(**changes):
    report = {"machine": {"rows": ["first", "second", "third"]}, "rows": rows, "tracebacks": {}, "running": None}
    path.with_suffix(".new").write_text(json.dumps(report | changes))
    path.with_suffix(".new").replace(path)
line = lambda row: {"row": row, "measure": "time", "state": "measured", "value": 1.0, "note": ""}
if "--resume" in sys.argv:
    rows = json.loads(path.read_text())["rows"] + [line("third")]
    write(tracebacks=json.loads(path.read_text())["tracebacks"])
    sys.exit(0)
rows = [line("first")]
"""
RUNNING = 'write(running={"row": "second", "began": time.time(), "box": BOX})\n'


def drill(tmp_path: Path, body: str, seconds: float, box: float = 100.0) -> tuple[int, Report]:
    path = tmp_path / "gpu.json"
    script = HEAD + body.replace("BOX", str(box))
    code = supervise([sys.executable, "-S", "-c", script, str(path)], path, seconds)
    return code, Report.load(path)


@pytest.mark.parametrize(
    ("body", "box", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 100.0, "the process ended by SIGSEGV"),
        ("os._exit(5)", 100.0, "the process ended with exit code 5"),
        ("time.sleep(100)", 0.1, "took longer than 0 s"),
    ],
)
def test_after_a_crash_or_a_hang_a_new_process_runs_the_rest(tmp_path: Path, body: str, box: float, error: str) -> None:
    code, report = drill(tmp_path, RUNNING + body, seconds=60, box=box)
    assert code == 0 and report.ended() == {"first", "second", "third"}
    (failed,) = [row for row in report.rows if row["state"] == "failed"]
    assert failed["row"] == "second" and failed["note"] == error and list(report.tracebacks) == ["second"]


def test_a_broken_device_gets_a_new_process(tmp_path: Path) -> None:
    code, report = drill(tmp_path, f"write()\nsys.exit({BROKEN})", seconds=60)
    assert code == 0 and report.ended() == {"first", "third"}


def test_the_limit_of_time_holds_for_a_process_that_hangs(tmp_path: Path) -> None:
    began = time.monotonic()
    code, report = drill(tmp_path, RUNNING + "time.sleep(100)", seconds=0.6)
    assert code < 0 and time.monotonic() - began < 10
    notes = {row["row"]: (row["state"], row["note"]) for row in report.rows}
    assert notes["second"] == ("failed", "the time of the drill was over")
    assert notes["third"] == ("left out", "no time is left") and report.running is None


def test_an_error_before_the_first_row_is_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": {}, "rows": [], "tracebacks": {}, "running": {"row": "old"}}))
    past = time.time() - 100
    os.utime(path, (past, past))
    assert supervise([sys.executable, "-S", "-c", "raise SystemExit(3)"], path, 60) == 3
    assert Report.load(path).running == {"row": "old"}  # an earlier drill's report is not touched
