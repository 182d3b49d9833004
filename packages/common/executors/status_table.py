"""How a run stands, as lines for a terminal: running, ended, stopped or killed, from another terminal or afterwards."""

import time
from datetime import timedelta
from pathlib import Path

from common.executors.status import StageStatus, read_status
from common.query import run_query
from common.runs import RunFolder

TROUBLES_SHOWN = 8
_HEAD = (
    f"{'stage':<12}{'':<9}{'done':>21}{'kept':>10}{'rejected':>10}{'failed':>8}{'pending':>9}{'per second':>12}"
    f"{'to go':>16}"
)
# Of stages that have left no status file, the settings under which they worked last.
_RECORDED = """
    WITH newest AS (SELECT stage, arg_max(fingerprint, recorded) AS fingerprint FROM outcomes GROUP BY stage)
    SELECT stage, count(*) AS done, count(*) FILTER (state = 'kept') AS kept,
    count(*) FILTER (state = 'rejected') AS rejected, count(*) FILTER (state = 'failed') AS failed,
    count(*) FILTER (state = 'pending') AS pending, min(recorded) AS began
    FROM outcomes JOIN newest USING (stage, fingerprint) GROUP BY stage ORDER BY began"""


def status_lines(run_root: Path | str) -> list[str]:
    """A table of the stages a run has begun, each under its last settings, and what has failed or waits, by class.

    Raises FileNotFoundError for an absent run.
    """
    recorded = run_query(run_root, _RECORDED).to_pylist()
    newest = {status.stage: status for status in read_status(RunFolder(Path(run_root)))}
    lines = [_line(status) for status in newest.values()]
    lines += [_recorded_line(row) for row in recorded if row["stage"] not in newest]
    if not lines:
        return [f"{run_root}: no stage has begun yet"]
    notes = [
        f"{status.stage} was {'killed' if status.state == 'lost' else 'stopped'} {_ago(status)} on {status.host}"
        f"{f' ({status.note})' if status.note else ''}: run the same command again to go on"
        for status in newest.values()
        if status.state in ("lost", "stopped")
    ]
    return [_HEAD, *lines, *notes, *_troubles(run_root)]


def _line(status: StageStatus) -> str:
    left = "-" if status.state != "running" or status.eta_seconds is None else _span(status.eta_seconds)
    done = f"{status.done:,} of {status.total:,}"
    rate = f"{status.per_second:,.2f}" if status.state == "running" else "-"
    line = (
        f"{status.stage:<12}{status.state:<9}{done:>21}{status.kept:>10,}{status.rejected:>10,}{status.failed:>8,}"
        f"{status.pending:>9,}{rate:>12}{left:>16}"
    )
    if status.state != "running":
        return line
    rest = f", {status.resting} of them resting" if status.resting else ""
    return f"{line}  {status.workers} workers{rest}{f' ({status.note})' if status.note else ''}"


def _recorded_line(row: dict) -> str:
    return (
        f"{row['stage']:<12}{'recorded':<9}{row['done']:>21,}{row['kept']:>10,}{row['rejected']:>10,}"
        f"{row['failed']:>8,}{row['pending']:>9,}{'-':>12}{'-':>16}"
    )


def _troubles(run_root: Path | str) -> list[str]:
    rows = run_query(run_root, "failures").slice(0, TROUBLES_SHOWN).to_pylist()
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
