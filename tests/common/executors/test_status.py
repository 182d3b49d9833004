import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from common.executors.status import StageHeartbeat, StageStatus, read_status, status_lines
from common.ledger.store import Ledger, Outcome, State
from common.runs import RunFolder


def counts(**states: int) -> Counter[State]:
    return Counter(states)  # type: ignore[arg-type]


def test_status_of_a_running_and_an_ended_stage(tmp_path: Path) -> None:
    run, found = RunFolder(tmp_path), counts(kept=2)
    assert read_status(run) == []
    with StageHeartbeat(run.ledger, "sync", "f1", 10, found) as heartbeat:
        (status,) = read_status(run)
        assert (status.stage, status.state, status.total, status.done, status.eta_seconds) == (
            "sync", "running", 10, 2, None
        )  # fmt: skip
        found.update({"rejected": 3, "failed": 1})
        heartbeat.workers, heartbeat.resting, heartbeat.note = 4, 1, "paused"
        heartbeat.beat()  # too soon
        assert read_status(run) == [status]
        heartbeat._written = 0.0
        heartbeat.beat()
        (status,) = read_status(run)
        assert (status.kept, status.rejected, status.failed, status.pending, status.done) == (2, 3, 1, 0, 6)
        assert (status.workers, status.resting, status.note) == (4, 1, "paused")
        assert status.per_second > 0 and status.eta_seconds == pytest.approx(4 / status.per_second, rel=0.05, abs=0.1)
    with pytest.raises(KeyError), StageHeartbeat(run.ledger, "cut", "f2", 1, counts()):
        raise KeyError
    assert [(s.stage, s.state, s.note) for s in read_status(run)] == [
        ("sync", "ended", ""),
        ("cut", "stopped", "KeyError"),
    ]


def test_a_killed_stage_is_lost(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with StageHeartbeat(run.ledger, "sync", "f1", 10, counts()):
        pass
    file = run.ledger / "sync-f1.status.json"
    status = json.loads(file.read_text())
    file.write_text(json.dumps(status | {"state": "running", "pid": dead.pid}))
    assert read_status(run)[0].state == "lost"
    file.write_text(json.dumps(status | {"state": "running", "host": "elsewhere"}))
    assert read_status(run)[0].state == "running"
    file.write_text(json.dumps(status | {"state": "running", "host": "elsewhere", "updated": 0.0}))
    assert read_status(run)[0].state == "lost"


@pytest.mark.parametrize("content", [b"", b'{"stage": "sy', b"\xff\xfe", b"[]", b"{}", b"null", "folder"], ids=str)
def test_a_damaged_status_is_told_and_passed_over(
    tmp_path: Path, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    with StageHeartbeat(run.ledger, "sync", "f1", 1, counts()):
        pass
    file = run.ledger / "sync-f1.status.json"
    file.unlink()
    if isinstance(content, str):
        file.mkdir()
    else:
        file.write_bytes(content)
    assert read_status(run) == []
    assert f"{file} is" in caplog.text and "delete it; it only shows progress" in caplog.text
    file.rmdir() if file.is_dir() else file.unlink()
    caplog.clear()
    with StageHeartbeat(run.ledger, "sync", "f1", 1, counts(kept=1)):
        pass
    assert [status.done for status in read_status(run)] == [1] and not caplog.text


def test_a_stage_begun_after_the_clock_went_back_is_still_the_last(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number, stage in enumerate(("sync", "cut", "sync")):
        with StageHeartbeat(run.ledger, stage, f"f{number}", 1, counts()):
            pass
        (file,) = run.ledger.glob(f"*-f{number}.status.json")  # as if the clock were an hour ahead until now
        file.write_text(json.dumps(asdict(read_status(run)[-1]) | {"started": read_status(run)[-1].started + 3600}))
    assert [status.fingerprint for status in read_status(run)] == ["f0", "f1", "f2"]


def edit(run: RunFolder, stage: str, **changes: object) -> None:
    """Change the status file of a stage."""
    (file,) = run.ledger.glob(f"{stage}-*.status.json")
    status = asdict(next(item for item in read_status(run) if item.stage == stage))
    file.write_text(json.dumps(status | changes))


def test_every_stage_is_a_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert status_lines(tmp_path) == [f"{tmp_path}: no stage has started yet"]
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
        "scan running 103 of 1,500 100 0 0 3 2.50 1:06:40 4 workers, 1 of them paused",
        "older recorded 2 1 0 1 0 - -",
    ]
    assert lines[4:] == ["1 failed in older: ValueError, such as: it broke"]
    slots = [lines[0].index(word) + len(word) for word in ("done", "kept", "pending", "ETA")]
    assert all(lines[1][slot - 1] != " " for slot in slots)  # the columns stand under their headings


def test_a_stopped_or_killed_stage_says_how_to_resume(tmp_path: Path) -> None:
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
    assert lines[4].startswith("sync was killed 0:00:0") and lines[4].endswith("again to resume")
    assert os.getpid() != gone and isinstance(read_status(run)[0], StageStatus)


def test_only_the_last_settings_of_a_stage_are_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for fingerprint, kept in (("old", 1), ("new", 2)):
        with StageHeartbeat(run.ledger, "scan", fingerprint, 5, {"kept": kept}):
            pass
    assert [line.split()[1:5] for line in status_lines(tmp_path)[1:]] == [["ended", "2", "of", "5"]]
    with pytest.raises(FileNotFoundError, match="no run folder"):
        status_lines(tmp_path / "absent")
