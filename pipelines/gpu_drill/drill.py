"""START HERE. Rows measured one after the other within a limit of time, each figure on disk as soon as it is known.

A row (`rows.py`) is a generator of figures. One that does not fit into the time or the memory that is left, or needs a
package that is not installed, is left out with that reason; one that fails keeps its error, and the next one runs.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from common.errors import UserError
from common.runs import OWN_FOLDERS
from pipelines.gpu_drill.device import Device
from pipelines.gpu_drill.report import Report, Value
from pipelines.gpu_drill.sizes import Sizes

logger = logging.getLogger(__name__)

AIMED_AT = ("H100", "H200")  # the aims of speed are for these
# Before the ceiling is measured a row's time is foretold for a card of this many operations per second; of either this
# share is taken for reached.
ASSUMED_FLOPS, REACHED = 300e12, 0.5
SPARE = 1.03  # times the bytes that a row needs: the allocator's rounding, and what the context holds


class LeftOutError(UserError, RuntimeError):
    """A row cannot be measured on this device or with what is installed; the message is the reason."""


def optional(module: str, what: str) -> ModuleType:
    """A module of this project that versions may lack. Raises LeftOutError."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise LeftOutError(f"{what} is not in this version of the project") from error


@dataclass
class Bench:
    """What a row is given: device, sizes, the figures so far, and the moment (monotonic) when all has to be done."""

    device: Device
    sizes: Sizes
    report: Report
    deadline: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def ceiling(self) -> float | None:
        """Operations per second of the bf16 matrix product that was measured first."""
        found = self.report.find("ceilings", "matrix product bf16")
        return None if found is None else found * 1e12

    def aim(self, comparison: str) -> str:
        """An aim of speed, where it holds: at full size on the cards that it was set for."""
        aimed = any(card in self.device.name for card in AIMED_AT) and self.sizes.name == "full"
        return comparison if aimed else ""

    def hfu(self, flops: float, seconds: float, aim: str = "", measure: str = "HFU") -> Iterator[Value]:
        """Share of the measured ceiling that `flops` operations in `seconds` reach; nothing without a ceiling."""
        if self.ceiling:
            yield Value(measure, flops / seconds / self.ceiling, "", aim, f"{flops / 1e12:,.1f} TFLOP")

    def peak(self, forecast: float | None = None) -> Value:
        """Peak memory of the row so far, with what was foretold."""
        note = "" if forecast is None else f"foretold {forecast / 1e9:.2f} GB"
        return Value("peak memory", self.device.peak() / 1e9, "GB", note=note)


def _none(sizes: Sizes) -> float:
    return 0.0


@dataclass(frozen=True)
class Row:
    """A row of the drill: its name, a generator of figures, and what it costs.

    `seconds` is all but arithmetic (imports, building, copies), `flops` its arithmetic, `memory` its bytes on the
    device; both of a chunk's sizes.
    """

    name: str
    run: Callable[[Bench], Iterator[Value]]
    seconds: float
    flops: Callable[[Sizes], float] = _none
    memory: Callable[[Sizes], float] = _none

    def expected(self, bench: Bench) -> float:
        """Seconds that this row is likely to take."""
        return self.seconds + self.flops(bench.sizes) / (REACHED * (bench.ceiling or ASSUMED_FLOPS))

    def obstacle(self, bench: Bench) -> str:
        """Why this row cannot be begun now, "" when it can."""
        seconds, need, free = self.expected(bench), SPARE * self.memory(bench.sizes), bench.device.free()
        if seconds > bench.seconds_left:
            return f"takes about {seconds:.0f} s, {max(bench.seconds_left, 0):.0f} s are left"
        if need > free:
            return f"needs about {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
        return ""


def run_rows(rows: Sequence[Row], bench: Bench) -> bool:
    """Run the rows that the report does not have yet; False when the device is broken: a new process has to go on."""
    for row in rows:
        if row.name in bench.report.ended():
            continue
        bench.device.release()
        if reason := row.obstacle(bench):
            bench.report.leave_out(row.name, reason)
            continue
        logger.info("%s: about %.0f s, %.0f s are left", row.name, row.expected(bench), bench.seconds_left)
        _run_row(row, bench)
        if not bench.device.healthy():
            return False
    return True


def _run_row(row: Row, bench: Bench) -> None:
    # A hung kernel cannot be interrupted from inside: the supervisor ends a process whose row outlasts its box.
    expected = row.expected(bench)
    bench.report.start(row.name, min(3 * expected + 30, max(bench.seconds_left, 1.0)))
    try:
        for value in row.run(bench):
            bench.report.add(row.name, value)
    except LeftOutError as reason:
        bench.report.leave_out(row.name, str(reason))
    except Exception as error:
        # Any: out of memory, a kernel that this card or this version of a library does not have, a changed interface,
        # a fault of our own. The minutes with a card are few, so the other rows must run; the traceback is kept.
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package and package not in OWN_FOLDERS:
            bench.report.leave_out(row.name, f"needs the package {package}, which is not installed")
        else:
            bench.report.fail(row.name, f"{type(error).__name__}: {error}", traceback.format_exc())
    bench.report.end()
