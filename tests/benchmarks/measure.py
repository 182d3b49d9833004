"""Ours against a peer: CPU seconds in interleaved rounds, one row of the table per comparison."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

ROUNDS = 5
PACKAGES = ("torch", "av", "opencv-python", "numpy", "scipy", "transformers", "webdataset")


@dataclass(frozen=True)
class Row:
    """One comparison: CPU seconds of each round, in the order measured; `aim` is the ratio hoped for."""

    what: str
    against: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    aim: float

    @property
    def ratios(self) -> list[float]:
        """Ours by peer of each round: neighbours in time, so that a busy machine slows both."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """Median over the rounds; below 1 ours is cheaper."""
        return median(self.ratios)

    @property
    def met(self) -> bool:
        """The ratio is no greater than the aim."""
        return self.ratio <= self.aim

    def record(self) -> dict[str, Any]:
        """The row with what it was measured on, for a JSON-lines file."""
        measured = {"ratio": self.ratio, "met": self.met, "load": os.getloadavg()[0], "time": round(time.time())}
        return asdict(self) | measured | {"versions": {name: version(name) for name in PACKAGES}}


def compare(what: str, against: str, ours: Callable[[], object], peer: Callable[[], object], aim: float) -> Row:
    """Time both in turn, ours first. Call it after both have run once and their outputs were found equal."""
    pairs = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    return Row(what, against, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), aim)


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system time of this process, all threads; waiting does not count."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def table(rows: Sequence[Row]) -> str:
    """Aligned lines `what | peer | ours s | peer s | ratio [least-most] | aim`."""
    lines = [("what", "peer", "ours s", "peer s", "ratio [least-most]", "aim")]
    for row in rows:
        span = f"{row.ratio:.2f} [{min(row.ratios):.2f}-{max(row.ratios):.2f}]"
        aim = f"{row.aim:.2f}" if row.met else f"{row.aim:.2f} MISSED"
        lines.append((row.what, row.against, f"{median(row.ours):.3f}", f"{median(row.peer):.3f}", span, aim))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
