"""Measurement of a command from outside: seconds, peak anonymous memory of all its processes, bytes from the disk."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.runs import read_json

EVERY = 0.02  # seconds between two samples of memory
SAVE_SECONDS = 60.0
PEAK_FILE = "OMNIAVATAR_DEVICE_PEAK"  # environment variable of the command below
COMMAND = "pipelines.rehearse.command"


@dataclass(frozen=True)
class Measured:
    """What a command took. `host`: the peak of anonymous memory, summed over the command and all processes below it,
    sampled every 20 ms; `processes` is the part of each. Anonymous (RssAnon in /proc) is what no file backs: mapped
    weights and the page cache are not in it. `device`: the peak of tensors on a GPU (`max_memory_allocated`), 0 without
    one. `read`: bytes that came from the disk, not from the page cache. `out_of_time`: it was stopped."""

    code: int
    seconds: float
    cpu_seconds: float
    host: int
    device: int
    read: int
    processes: tuple[int, ...] = ()
    out_of_time: bool = False


def run_measured(arguments: Sequence[str], log: Path, patience: float) -> Measured:
    """Run `omniavatar ARGUMENTS`, with its output in the file `log`, to its end, and measure it.

    After `patience` seconds, or when this process is stopped, the command is asked to stop, and killed when it has not
    saved within a minute.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    peak = log.with_suffix(".peak.json")
    peak.unlink(missing_ok=True)
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, PEAK_FILE: str(peak.resolve())}
    began, used, read = time.monotonic(), _cpu_seconds(), _bytes_read()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", COMMAND, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        watch = _Watch(process.pid)
        watch.start()
        out_of_time = False
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            out_of_time = True
        finally:
            _end(process)
            watch.stop()
    device = int(read_json(peak)["device"]) if peak.exists() else 0
    seconds = time.monotonic() - began
    read = max(0, _bytes_read() - read)
    cpu_seconds, parts = _cpu_seconds() - used, tuple(watch.parts)
    return Measured(process.returncode, seconds, cpu_seconds, watch.peak, device, read, parts, out_of_time)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Watch(threading.Thread):
    """Samples the anonymous memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.parts = pid, 0, list[int]()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            parts = anonymous_parts(self.pid)
            if sum(parts) > self.peak:
                self.peak, self.parts = sum(parts), parts

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()


def anonymous_parts(pid: int, above: tuple[bytes, int] = (b"", 0)) -> list[int]:
    """Anonymous bytes of a process and of each that descends from it, those that are alive.

    A child that was forked and runs the same program shares its parent's memory, `above` (command line, bytes): only
    what it has beyond that counts.
    """
    command, size = _read(f"/proc/{pid}/cmdline"), anonymous_bytes(pid)
    own = max(0, size - above[1]) if command == above[0] else size
    children = [int(child) for task in _names(f"/proc/{pid}/task") for child in _children(pid, task)]
    return [own, *(part for child in children for part in anonymous_parts(child, (command, size)))]


def _children(pid: int, task: str) -> list[bytes]:
    return _read(f"/proc/{pid}/task/{task}/children").split()


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory in use by a process; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _bytes_read() -> int:
    """Bytes read from the disk by this process and its children that have ended."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


def write_device_peak() -> None:
    """Write the peak memory of tensors on the GPUs of this process to the file that the environment names."""
    peak = 0
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            peak = max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    Path(os.environ[PEAK_FILE]).write_text(json.dumps({"device": peak}))
