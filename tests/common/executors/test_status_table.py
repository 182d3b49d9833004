"""What is said of a run that works, that has ended, that was stopped and that was killed."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from common.executors.status import StageHeartbeat, StageStatus, read_status
from common.executors.status_table import status_lines
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder


def edit(run: RunFolder, stage: str, **changes: object) -> None:
    """Change what a stage has written of itself."""
    (file,) = run.ledger.glob(f"{stage}-*.status.json")
    status = asdict(next(item for item in read_status(run) if item.stage == stage))
    file.write_text(json.dumps(status | changes))


def test_every_stage_is_a_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert status_lines(tmp_path) == [f"{tmp_path}: no stage has begun yet"]
    with Ledger(run.ledger).open("older", "f") as log:
        log.append(("a", ""), Outcome("a", "kept"))
        log.append(("b", ""), Outcome("b", "failed", message="it   broke", error_class="ValueError"))
    with StageHeartbeat(run.ledger, "probe", "f", 2000, {"kept": 1500, "rejected": 500}):
        pass
    with StageHeartbeat(run.ledger, "scan", "f", 1500, {"kept": 100, "pending": 3}):
        edit(run, "scan", state="running", per_second=2.5, eta_seconds=4000.4, workers=4, resting=1)
        lines = status_lines(tmp_path)
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "probe ended 2,000 of 2,000 1,500 500 0 0 - -",
        "scan running 103 of 1,500 100 0 0 3 2.50 1:06:40 4 workers, 1 of them resting",
        "older recorded 2 1 0 1 0 - -",
    ]
    assert lines[4:] == ["1 failed in older: ValueError, such as: it broke"]
    slots = [lines[0].index(word) + len(word) for word in ("done", "kept", "pending", "to go")]
    assert all(lines[1][slot - 1] != " " for slot in slots)  # the columns stand under their heads


def test_a_stage_that_is_no_more_says_how_to_go_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(RuntimeError), StageHeartbeat(run.ledger, "cut", "f", 9, {"kept": 4}):
        raise RuntimeError
    with StageHeartbeat(run.ledger, "sync", "f", 9, {"kept": 1}):
        pass
    gone = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    edit(run, "sync", state="running", pid=gone)
    lines = status_lines(tmp_path)
    assert lines[2].split()[1] == "lost"
    assert lines[3].startswith("cut was stopped 0:00:0") and "(RuntimeError): run the same command" in lines[3]
    assert lines[4].startswith("sync was killed 0:00:0") and lines[4].endswith("again to go on")
    assert os.getpid() != gone and isinstance(read_status(run)[0], StageStatus)


def test_only_the_last_settings_of_a_stage_are_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for fingerprint, kept in (("old", 1), ("new", 2)):
        with StageHeartbeat(run.ledger, "scan", fingerprint, 5, {"kept": kept}):
            pass
    assert [line.split()[1:5] for line in status_lines(tmp_path)[1:]] == [["ended", "2", "of", "5"]]
    with pytest.raises(FileNotFoundError, match="no run folder"):
        status_lines(tmp_path / "absent")
