"""Stage status: a heartbeat file per stage beside its ledger rows, and the status table that terminals show."""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from datetime import timedelta
from pathlib import Path
from typing import Literal

from common.errors import DamagedFileError
from common.ledger.store import STATES, State
from common.runs import RunFolder, disk_guard, read_json, temporary_beside

logger = logging.getLogger(__name__)
BEAT_SECONDS = 1.0  # between two writes
LOST_SECONDS = 60.0  # without a heartbeat from another machine
FAILURES_SHOWN = 8
_HEAD = (
    f"{'stage':<12}{'':<9}{'done':>21}{'kept':>10}{'rejected':>10}{'failed':>8}{'pending':>9}{'per second':>12}"
    f"{'ETA':>16}"
)
# Counts from the ledger for stages without a status file, under their most recent fingerprint.
_RECORDED = """
    WITH newest AS (SELECT stage, arg_max(fingerprint, recorded) AS fingerprint FROM outcomes GROUP BY stage)
    SELECT stage, count(*) AS done, count(*) FILTER (state = 'kept') AS kept,
    count(*) FILTER (state = 'rejected') AS rejected, count(*) FILTER (state = 'failed') AS failed,
    count(*) FILTER (state = 'pending') AS pending, min(recorded) AS began
    FROM outcomes JOIN newest USING (stage, fingerprint) GROUP BY stage ORDER BY began"""


@dataclass(frozen=True)
class StageStatus:
    """One stage at one moment. `done` includes units finished by earlier runs, `per_second` counts this run only.

    `state` is "running", "ended", "stopped" (by an error or Ctrl-C) or "lost": killed, or its machine went down.
    `resting` is the number of paused workers. `eta_seconds` is None until the first unit ends, `started` and `updated`
    are seconds since 1970. The fields are the JSON keys of the status file.
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
    """Writes the status of one running stage, at most once in `BEAT_SECONDS`; a context that records how it ended."""

    def __init__(self, folder: Path, stage: str, fingerprint: str, total: int, counts: Mapping[State, int]) -> None:
        self._file = folder / f"{stage}-{fingerprint}.status.json"
        self._stage, self._fingerprint, self.total = stage, fingerprint, total
        self._counts, self._before = counts, sum(counts.values())
        self._started, self._began, self._written = _start_time(folder), time.monotonic(), -math.inf
        self.workers, self.resting, self.note = 0, 0, ""

    def __enter__(self) -> "StageHeartbeat":
        self._write("running")
        return self

    def beat(self) -> None:
        """Write the status if the last write is at least `BEAT_SECONDS` old. Raises DiskFullError."""
        if time.monotonic() - self._written >= BEAT_SECONDS:
            self._write("running")

    def __exit__(self, kind: type | None, *error: object) -> None:
        self.note = kind.__name__ if kind else ""
        self.workers = self.resting = 0
        self._write("stopped" if kind else "ended")

    def _write(self, state: Literal["running", "ended", "stopped"]) -> None:
        self._written = now = time.monotonic()
        done = sum(self._counts.values())
        rate = (done - self._before) / max(now - self._began, 1e-9)
        status = StageStatus(
            stage=self._stage,
            fingerprint=self._fingerprint,
            state=state,
            total=self.total,
            done=done,
            **{state: self._counts.get(state, 0) for state in STATES},
            per_second=round(rate, 4),
            eta_seconds=round((self.total - done) / rate, 1) if rate else None,
            workers=self.workers,
            resting=self.resting,
            note=self.note,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            updated=time.time(),
        )
        # Atomic for readers; without fsync, since losing the status in a power cut is acceptable.
        temporary = temporary_beside(self._file)
        with disk_guard(self._file):
            temporary.write_text(json.dumps(asdict(status)), "utf-8")
            os.replace(temporary, self._file)


def _start_time(folder: Path) -> float:
    """The time now, but after the start of every stage before, even when the clock was set back in between."""
    return max([time.time(), *(status.started + 1e-3 for status in _stored(folder))])


def read_status(run: RunFolder) -> list[StageStatus]:
    """Status of every stage that a run has started, in order; one whose process is gone is "lost".

    A damaged status file is passed over with a warning: it shows what the ledger knows as well.
    """
    return sorted(map(_with_liveness, _stored(run.ledger)), key=lambda status: status.started)


def _stored(folder: Path) -> Iterator[StageStatus]:
    for file in folder.glob("*-*.status.json"):
        try:
            fields = read_json(file, *(item.name for item in dataclass_fields(StageStatus)))
        except DamagedFileError as error:
            logger.warning("%s", error)
            continue
        yield StageStatus(**fields)


def _with_liveness(status: StageStatus) -> StageStatus:
    if status.state != "running":
        return status
    local = status.host == socket.gethostname()
    alive = Path(f"/proc/{status.pid}").exists() if local else time.time() - status.updated < LOST_SECONDS
    return status if alive else StageStatus(**asdict(status) | {"state": "lost", "eta_seconds": None})


def status_lines(run_root: Path | str) -> list[str]:
    """A table of the stages that a run has started, each under its latest settings, then its failures by class.

    Raises FileNotFoundError for an absent run.
    """
    # Workers import this module and never query; DuckDB takes most of a second to import.
    from common.query import run_query

    recorded = run_query(run_root, _RECORDED).to_pylist()
    newest = {status.stage: status for status in read_status(RunFolder(Path(run_root)))}
    lines = [_line(status) for status in newest.values()]
    lines += [_recorded_line(row) for row in recorded if row["stage"] not in newest]
    if not lines:
        return [f"{run_root}: no stage has started yet"]
    notes = [
        f"{status.stage} was {'killed' if status.state == 'lost' else 'stopped'} {_ago(status)} on {status.host}"
        f"{f' ({status.note})' if status.note else ''}: run the same command again to resume"
        for status in newest.values()
        if status.state in ("lost", "stopped")
    ]
    return [_HEAD, *lines, *notes, *_failures(run_root)]


def _line(status: StageStatus) -> str:
    eta = "-" if status.state != "running" or status.eta_seconds is None else _span(status.eta_seconds)
    done = f"{status.done:,} of {status.total:,}"
    rate = f"{status.per_second:,.2f}" if status.state == "running" else "-"
    line = (
        f"{status.stage:<12}{status.state:<9}{done:>21}{status.kept:>10,}{status.rejected:>10,}{status.failed:>8,}"
        f"{status.pending:>9,}{rate:>12}{eta:>16}"
    )
    if status.state != "running":
        return line
    paused = f", {status.resting} of them paused" if status.resting else ""
    return f"{line}  {status.workers} workers{paused}{f' ({status.note})' if status.note else ''}"


def _recorded_line(row: dict) -> str:
    return (
        f"{row['stage']:<12}{'recorded':<9}{row['done']:>21,}{row['kept']:>10,}{row['rejected']:>10,}"
        f"{row['failed']:>8,}{row['pending']:>9,}{'-':>12}{'-':>16}"
    )


def _failures(run_root: Path | str) -> list[str]:
    from common.query import run_query

    rows = run_query(run_root, "failures").slice(0, FAILURES_SHOWN).to_pylist()
    return [
        f"{row['units']:,} {row['state']} in {row['stage']}: {row['class']}{_example(row['example'])}" for row in rows
    ]


def _example(message: str | None) -> str:
    words = " ".join((message or "").split())
    return f", such as: {words[:117] + '...' if len(words) > 120 else words}" if words else ""


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _ago(status: StageStatus) -> str:
    return f"{_span(max(0.0, time.time() - status.updated))} ago"
