import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from common.executors.status import StageHeartbeat, read_status
from common.ledger.store import State
from common.runs import RunFolder


def counts(**states: int) -> Counter[State]:
    return Counter(states)  # type: ignore[arg-type]


def test_a_stage_can_be_watched_and_remembered(tmp_path: Path) -> None:
    run, found = RunFolder(tmp_path), counts(kept=2)
    assert read_status(run) == []
    with StageHeartbeat(run.ledger, "sync", "f1", 10, found) as heartbeat:
        (status,) = read_status(run)
        assert (status.stage, status.state, status.total, status.done, status.eta_seconds) == (
            "sync", "running", 10, 2, None
        )  # fmt: skip
        found.update({"rejected": 3, "failed": 1})
        heartbeat.workers, heartbeat.resting, heartbeat.note = 4, 1, "rests"
        heartbeat.beat()  # too soon
        assert read_status(run) == [status]
        heartbeat._written = 0.0
        heartbeat.beat()
        (status,) = read_status(run)
        assert (status.kept, status.rejected, status.failed, status.pending, status.done) == (2, 3, 1, 0, 6)
        assert (status.workers, status.resting, status.note) == (4, 1, "rests")
        assert status.per_second > 0 and status.eta_seconds == pytest.approx(4 / status.per_second, rel=0.05, abs=0.1)
    with pytest.raises(KeyError), StageHeartbeat(run.ledger, "cut", "f2", 1, counts()):
        raise KeyError
    assert [(s.stage, s.state, s.note) for s in read_status(run)] == [
        ("sync", "ended", ""),
        ("cut", "stopped", "KeyError"),
    ]


def test_whoever_was_killed_is_lost(tmp_path: Path) -> None:
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
