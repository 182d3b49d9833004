"""Ours against a peer: CPU seconds in interleaved rounds, or memory; one row of the table per comparison."""

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROUNDS = 5
PACKAGES = ("torch", "av", "opencv-python", "numpy", "scipy", "transformers", "webdataset")


@dataclass(frozen=True)
class Row:
    """One comparison: CPU seconds of each round, in the order measured, or MB; `aim` is the ratio hoped for."""

    what: str
    against: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    aim: float
    unit: str = "s"

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


def compare(
    what: str, against: str, ours: Callable[[], object], peer: Callable[[], object], aim: float, rounds: int = ROUNDS
) -> Row:
    """Time both in turn, ours first. Call it after both have run once and their outputs were found equal."""
    pairs = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(rounds)]
    return Row(what, against, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), aim)


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system time of this process, all threads; waiting does not count."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def compare_commands(
    what: str, against: str, ours: Sequence[str], peer: Sequence[str], aim: float, rounds: int = ROUNDS
) -> Row:
    """Two commands in turn, each a process of its own from its start to its end; both run once before."""
    child_seconds(ours)
    child_seconds(peer)
    pairs = [(child_seconds(ours), child_seconds(peer)) for _ in range(rounds)]
    return Row(what, against, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), aim)


def child_seconds(command: Sequence[str]) -> float:
    """User and system time of a process and of all that it started and waited for. Raises RuntimeError if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare_memory(what: str, against: str, ours: Callable[[], object], peer: Callable[[], object], aim: float) -> Row:
    """Peak of the tensors of both; it does not vary, so once is enough."""
    return Row(what, against, (peak_of_tensors(ours),), (peak_of_tensors(peer),), aim, unit="MB")


def peak_of_tensors(work: Callable[[], object]) -> float:
    """MB by which torch's allocations peak above where they were; scratch memory inside kernels is not seen."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate(change for _, change in changes)) / 1e6


def peak_resident(work: Callable[[], object]) -> float:
    """MB by which the resident memory of a process that does this peaks above where it was, mapped files included."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent do not exist here
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            kept = work()
            os.write(write_end, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
            del kept
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end) as pipe:
        answer = pipe.read()
    if not answer:
        raise RuntimeError("The work failed in the process that was to measure it; call it here to see why.")
    return int(answer) * 1024 / 1e6  # kibibytes, as Linux counts


def table(rows: Sequence[Row]) -> str:
    """Aligned lines `what | peer | ours | peer | ratio [least-most] | aim`, seconds unless they name another unit."""
    lines = [("what", "peer", "ours", "peer", "ratio [least-most]", "aim")]
    for row in rows:
        span = f"{row.ratio:.2f} [{min(row.ratios):.2f}-{max(row.ratios):.2f}]"
        aim = f"{row.aim:.2f}" if row.met else f"{row.aim:.2f} MISSED"
        lines.append((row.what, row.against, _figure(row, row.ours), _figure(row, row.peer), span, aim))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _figure(row: Row, rounds: Sequence[float]) -> str:
    return f"{median(rounds):.3f} s" if row.unit == "s" else f"{median(rounds):.0f} {row.unit}"
