"""How a stage stands, in a small file beside its ledger rows: for another terminal, and for the day after a crash."""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.ledger.store import STATES, State
from common.runs import RunFolder, disk_guard, read_json

BEAT_SECONDS = 1.0  # between two writings
LOST_SECONDS = 60.0  # without a beat from another machine


@dataclass(frozen=True)
class StageStatus:
    """One stage at one moment. `done` counts units known before as well, `per_second` only those of this run.

    `state` is "running", "ended", "stopped" (by an error or Ctrl-C) or "lost": killed, or its machine went away.
    `eta_seconds` is None as long as nothing is known, `started` and `updated` are seconds since 1970.
    """

    stage: str
    fingerprint: str
    state: Literal["running", "ended", "stopped", "lost"]
    total: int
    done: int
    kept: int
    rejected: int
    failed: int
    pending: int
    per_second: float
    eta_seconds: float | None
    workers: int
    resting: int
    note: str
    host: str
    pid: int
    started: float
    updated: float


class StageHeartbeat:
    """Writes the status of one running stage, at most once in `BEAT_SECONDS`; a context that notes how it ended."""

    def __init__(self, folder: Path, stage: str, fingerprint: str, total: int, counts: Mapping[State, int]) -> None:
        self._file = folder / f"{stage}-{fingerprint}.status.json"
        self._stage, self._fingerprint, self._total = stage, fingerprint, total
        self._counts, self._before = counts, sum(counts.values())
        self._started, self._written = time.time(), 0.0
        self.workers, self.resting, self.note = 0, 0, ""

    def __enter__(self) -> "StageHeartbeat":
        self._write("running")
        return self

    def beat(self) -> None:
        """Write how things stand, if the last time is long enough ago. Errors: DiskFullError."""
        if time.time() - self._written >= BEAT_SECONDS:
            self._write("running")

    def __exit__(self, kind: type | None, *error: object) -> None:
        self.note = kind.__name__ if kind else ""
        self.workers = self.resting = 0
        self._write("stopped" if kind else "ended")

    def _write(self, state: Literal["running", "ended", "stopped"]) -> None:
        self._written = now = time.time()
        done = sum(self._counts.values())
        rate = (done - self._before) / max(now - self._started, 1e-9)
        status = StageStatus(
            stage=self._stage,
            fingerprint=self._fingerprint,
            state=state,
            total=self._total,
            done=done,
            **{state: self._counts.get(state, 0) for state in STATES},
            per_second=round(rate, 4),
            eta_seconds=round((self._total - done) / rate, 1) if rate else None,
            workers=self.workers,
            resting=self.resting,
            note=self.note,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            updated=now,
        )
        # Whole or not at all for a reader; a machine that loses power may lose it.
        temporary = self._file.with_suffix(".tmp")
        with disk_guard(self._file):
            temporary.write_text(json.dumps(asdict(status)), "utf-8")
            os.replace(temporary, self._file)


def read_status(run: RunFolder) -> list[StageStatus]:
    """The stages a run has begun, in the order in which they were; one whose process is gone is "lost"."""
    found = [StageStatus(**read_json(file)) for file in run.ledger.glob("*-*.status.json")]
    return sorted(map(_judged, found), key=lambda status: status.started)


def _judged(status: StageStatus) -> StageStatus:
    if status.state != "running":
        return status
    here = status.host == socket.gethostname()
    alive = Path(f"/proc/{status.pid}").exists() if here else time.time() - status.updated < LOST_SECONDS
    return status if alive else StageStatus(**asdict(status) | {"state": "lost", "eta_seconds": None})
