import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.runs import RunFolder
from training.launch.rank import AGENT, LAUNCHER, report_failure

ORPHAN = "from training.launch.rank import exit_with_launcher; import time; exit_with_launcher(); time.sleep(60)"
LAUNCH = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {ORPHAN!r}], env=os.environ | {{sys.argv[1]: str(os.getpid())}})
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("variable", [LAUNCHER, AGENT], ids=["ours", "torchrun"])
def test_a_rank_does_not_outlive_a_killed_launcher(variable: str) -> None:
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
    command = [sys.executable, "-c", LAUNCH, variable]
    with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        orphan = int(launcher.stdout.readline())
        time.sleep(0.5)
        assert is_alive(orphan)
        launcher.kill()
    deadline = time.monotonic() + 30
    while is_alive(orphan) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(orphan)


def test_without_a_launcher_the_sentence_goes_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    try:
        raise ValueError("lr is -1;\n  expected more than 0")
    except ValueError as error:
        report_failure(RunFolder(tmp_path), error)
    said = capfd.readouterr().err
    assert said.startswith("Training stopped: lr is -1; expected more than 0 (traceback: ")
    assert said.count("\n") == 1
    assert "raise ValueError" in (tmp_path / "logs" / "train-failure-0.txt").read_text()
