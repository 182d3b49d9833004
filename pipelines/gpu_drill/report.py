"""Report of a drill: flat rows that DuckDB reads, written whole after every figure, and the table printed last.

    select r.* from (select unnest(rows) r from 'gpu.json') where r.row = 'forward_14b'

A row has the state "measured", "failed" (with the error as its note, the traceback beside the rows) or "left out"
(with the reason). Imports no torch: the process that supervises the measuring one reads and writes it too.
"""

import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import shorten
from common.runs import read_json, write_json

_COMPARISONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Value:
    """One figure of a row. `aim` is "" or a comparison such as "<= 2.7"."""

    measure: str
    value: float
    unit: str
    aim: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if not self.aim:
            return None
        comparison, bound = self.aim.split()
        return bool(_COMPARISONS[comparison](self.value, float(bound)))


@dataclass
class Report:
    """What is in `path`. `machine` describes the device and the software; `running` is the row in progress."""

    path: Path
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tracebacks: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] | None = None

    @staticmethod
    def load(path: Path) -> "Report":
        """Read a report. Raises FileNotFoundError, DamagedFileError."""
        content = read_json(path, "machine", "rows", "tracebacks", "running")
        return Report(path, content["machine"], content["rows"], content["tracebacks"], content["running"])

    def save(self) -> None:
        """Write the report, whole or not at all. Raises DiskFullError."""
        content = {name: getattr(self, name) for name in ("machine", "rows", "tracebacks", "running")}
        write_json(self.path, content)

    def start(self, row: str, box: float) -> None:
        """Record that a row begins, and that it may take `box` seconds."""
        self.running = {"row": row, "began": time.time(), "box": box}
        self.save()

    def add(self, row: str, value: Value) -> None:
        """Record one figure of a row."""
        figures = {"value": value.value, "unit": value.unit, "aim": value.aim, "met": value.met}
        self._append(row, value.measure, "measured", value.note, **figures)

    def fail(self, row: str, error: str, traceback: str) -> None:
        """Record the error that ended a row; the figures that it had until then stay."""
        self.tracebacks[row] = traceback
        self._append(row, "", "failed", shorten(" ".join(error.split()), 300))

    def leave_out(self, row: str, reason: str) -> None:
        """Record that a row was not begun, or not finished, and why."""
        self._append(row, "", "left out", reason)

    def end(self) -> None:
        """Record that no row is in progress."""
        self.running = None
        self.save()

    def ended(self) -> set[str]:
        """Names of the rows with a figure or an error; those left out are not among them."""
        return {row["row"] for row in self.rows if row["state"] != "left out"}

    def forget_left_out(self) -> None:
        """Drop the lines of rows left out, which are to be tried again."""
        self.rows = [row for row in self.rows if row["state"] != "left out"]

    def find(self, row: str, measure: str) -> float | None:
        """A figure by its row and measure; None where there is none."""
        found = (each["value"] for each in self.rows if (each["row"], each["measure"]) == (row, measure))
        return next(found, None)

    def _append(self, row: str, measure: str, state: str, note: str, **figures: Any) -> None:
        running = self.running if self.running and self.running["row"] == row else None
        seconds = round(time.time() - running["began"], 2) if running else 0.0
        where = {name: self.machine.get(name) for name in ("device", "torch", "sizes")}
        empty = {"value": None, "unit": "", "aim": "", "met": None}
        line = {"row": row, "measure": measure, "state": state, "seconds": seconds, "note": note}
        self.rows.append(empty | figures | where | line)
        self.save()


def table(report: Report) -> Iterator[str]:
    """The lines to print last: one for each row that was measured, then what failed and what was left out."""
    measured = [row for row in report.rows if row["state"] == "measured"]
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row in measured:
        by_row.setdefault(row["row"], []).append(row)
    width = max(map(len, by_row), default=0)
    yield " | ".join(str(report.machine.get(key, "?")) for key in ("device", "torch", "sizes", "date"))
    yield from (f"{name.ljust(width)}  {_figures(rows)}" for name, rows in by_row.items())
    for state in ("failed", "left out"):
        for row in report.rows:
            if row["state"] == state:
                yield f"{state}: {row['row']}: {row['note']}"
    missed = sum(row["met"] is False for row in measured)
    yield f"{len(measured)} figures, {missed} short of their aim, {len(report.tracebacks)} rows failed: {report.path}"


def _figures(rows: list[dict[str, Any]]) -> str:
    """The figures of a row; of several that all meet their aims, as errors do, only the largest."""
    met = [row for row in rows if row["met"]]
    if len(met) > 2:
        largest = max(row["value"] for row in met)
        others = [_figure(row) for row in rows if not row["met"]]
        return "; ".join([f"{len(met)} within their aims, the largest {_number(largest)}", *others])
    return "; ".join(map(_figure, rows))


def _figure(row: dict[str, Any]) -> str:
    aim = f" (aim {row['aim']}{' MISSED' if row['met'] is False else ''})" if row["aim"] else ""
    return f"{row['measure']} {_number(row['value'])} {row['unit']}".rstrip() + aim


def _number(value: float | None) -> str:
    if value is None:  # NaN and infinity have no place in JSON
        return "not finite"
    small, large = 0 < abs(value) < 0.001, abs(value) >= 1000
    return f"{value:.2e}" if small else f"{value:,.0f}" if large else f"{value:.4g}"
