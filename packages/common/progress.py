"""Console output: logging set up once, progress bars, and metrics as JSON lines."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.ledger.jsonlines import JsonLines
from common.runs import OWN_FOLDERS, atomic_write
from common.untrusted.text import printable

T = TypeVar("T")
_console = Console(stderr=True)
# Warnings of libraries that nobody can act on, by their beginning.
KNOWN_WARNINGS = ("Mismatch dtype between input and weight",)  # torch: a norm in float32 of a model in bfloat16
LINE_SECONDS = 10.0  # without a terminal a bar says where it is no more often than this


def setup_logging(verbose: bool = False) -> None:
    """Send log records and warnings to standard error; for entry points only. Of libraries only warnings are shown."""
    if _console.is_terminal:  # rich keeps log lines above the bars
        handler: logging.Handler = RichHandler(console=_console, show_path=False, log_time_format="%H:%M:%S")
        form = "%(message)s"
    else:
        handler, form = logging.StreamHandler(), "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_PrintableFormatter(form, "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for beginning in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=beginning, category=UserWarning)
    for name in OWN_FOLDERS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


class _PrintableFormatter(logging.Formatter):
    """Messages name files and ids of others: nothing in them is obeyed by the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def duration_text(seconds: float) -> str:
    """A length of time with the unit that suits it: "2.31 h", "4.2 min", "7.5 s"."""
    seconds = seconds or 0.0  # no -0.0
    if abs(seconds) >= 360:
        return f"{seconds / 3600:.2f} h"
    return f"{seconds / 60:.1f} min" if abs(seconds) >= 60 else f"{seconds:.1f} s"


def progress(source: Iterable[T] | int, label: str, total: int | None = None) -> "ProgressBar[T]":
    """A bar over an iterable, `for x in progress(xs, "shots")`, or to a number, `with progress(90, "train") as bar`."""
    if isinstance(source, int):
        return ProgressBar((), label, source)
    return ProgressBar(source, label, len(source) if total is None and isinstance(source, Sized) else total)


class ProgressBar(Generic[T]):
    """A bar on a terminal; elsewhere one line at the end and, in between, at most one every ten seconds."""

    def __init__(self, source: Iterable[T], label: str, total: int | None) -> None:
        self.label, self.total, self.count = label, total, 0
        self._source = source
        self._started = self._spoke = time.monotonic()
        self._note, self._said = "", -1
        self._task: TaskID | None = None

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._source:
                yield item
                self.update()

    def __enter__(self) -> "ProgressBar[T]":
        self._started = self._spoke = time.monotonic()
        if _console.is_terminal:
            self._task = _bars.open(self.label, self.total)
        return self

    def update(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`; `note` (a loss, a count) is shown after the label."""
        self.count, self._note = self.count + steps, note
        if self._task is not None:
            _bars.move(self._task, self.count, f"{self.label} {note}".rstrip())
        elif time.monotonic() - self._spoke >= LINE_SECONDS:
            self._say()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._task is not None:
            _bars.close(self._task)
        elif self._said != self.count:
            self._say()

    def _say(self) -> None:
        self._spoke, self._said = time.monotonic(), self.count
        of = f"/{self.total}" if self.total is not None else ""
        line = f"{self.label}: {self.count}{of} in {self._spoke - self._started:.1f} s{self._left()} {self._note}"
        _console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        """What remains at the mean speed so far, " (40 s left)"; nothing where that says nothing."""
        if self.total is None or not 0 < self.count < self.total:
            return ""
        return f" ({(self._spoke - self._started) / self.count * (self.total - self.count):.0f} s left)"


class MetricLog:
    """Numbers of a run as JSON lines, one object per step; lines are whole or absent, also after kill -9."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lines = JsonLines(self.path)

    def write(self, **numbers: Any) -> None:
        """Append one line. Raises DiskFullError."""
        self._lines.append(numbers)

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        return list(self._lines.rows())

    def truncate(self, step: int) -> None:
        """Forget the lines after `step` (those with a greater "step"), before going on from a checkpoint of `step`."""
        self._lines.close()
        if self.path.exists():
            with atomic_write(self.path) as temporary:
                kept = JsonLines(temporary)
                temporary.write_bytes(b"")
                for row in self._lines.rows():
                    if row.get("step", step) <= step:
                        kept.append(row)
                kept.close()

    def close(self) -> None:
        """Let another writer have the file."""
        self._lines.close()


class _Bars:
    """The bars open at this moment share one live display, so that they can be nested."""

    def __init__(self) -> None:
        self._display: Progress | None = None

    def open(self, label: str, total: int | None) -> TaskID:
        if self._display is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._display = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_console)
            self._display.start()
        return self._display.add_task(label, total=total)

    def move(self, task: TaskID, count: int, label: str) -> None:
        assert self._display is not None
        self._display.update(task, completed=count, description=label)

    def close(self, task: TaskID) -> None:
        assert self._display is not None
        if len(self._display.tasks) > 1:
            self._display.remove_task(task)  # an inner bar makes room for the next
        else:
            self._display.stop()
            self._display = None


_bars = _Bars()
