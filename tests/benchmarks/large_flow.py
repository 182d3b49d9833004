"""Flow of a run as large as AVSpeech, of stages that take no time: CPU per unit and stage, memory of the driver, time
to the first source that is finished, and what going on costs after a kill near the end and when all is done.

By hand; 300,000 clips take about ten minutes on two free cores, and 1 GB of disk:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.large_flow --clips 300000 --executor ray --folder DIR

A source becomes nine clips, each of which goes through four stages whose outputs are 2.4 KB. Overlap of stages that
need different things is another question:

    python -m tests.benchmarks.large_flow --overlap --executor ray --folder DIR
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from common.executors.config import ExecutorConfig
from common.executors.flow import Flow, Step
from common.executors.flow_run import run_flow
from common.ledger.store import FLOW, Ledger, Outcome
from tests.common.executors.function_stage import FunctionStage

CLIPS, STAGES = 9, 4
KILL_AT = 0.98  # of the sources: the run is killed then, and goes on
VALUES = [round(0.123456 * number, 6) for number in range(240)]  # 2.4 KB of JSON
Row = dict[str, Any]


def split(row: Row) -> Outcome:
    return Outcome(row["unit"], "kept", outputs={"rows": [{"unit": f"{row['unit']}-{n}"} for n in range(CLIPS)]})


def score(name: str, row: Row) -> Outcome:
    return Outcome(row["unit"], "kept", outputs={name: VALUES})


def make_split() -> Callable[[Row], Outcome]:
    return split


def make_score(name: str) -> Callable[[Row], Outcome]:
    return partial(score, name)


def children(row: Row) -> list[Row]:
    return list(row["rows"])


def instant_flow() -> Flow:
    """A source of nine clips, four stages that take no time."""
    names = [f"stage{number}" for number in range(STAGES)]
    scores = [FunctionStage(name, "1", {}, {}, partial(make_score, name), ("unit",)) for name in names]
    first = Step(FunctionStage("split", "1", {}, {}, make_split, ("unit",)), then=children)
    return Flow((first, *map(Step, scores)))


def sleep(seconds: float, log: Path, name: str, row: Row) -> Outcome:
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write(f"{name} {time.time():.3f}\n")
    return Outcome(row["unit"], "kept")


def make_sleep(seconds: float, log: Path, name: str, lane: str = "") -> Callable[[Row], Outcome]:
    return partial(sleep, seconds, log, name)


def sleeping_flow(log: Path) -> Flow:
    """Download on four lanes, two stages on two workers, a network on one of its own: each busy all the time."""
    lanes = tuple(f"exit{number}" for number in range(4))

    def stage(name: str, seconds: float, **options: Any) -> Step:
        return Step(FunctionStage(name, "1", {}, {}, partial(make_sleep, seconds, log, name), ("unit",), **options))

    return Flow(
        (
            stage("download", 0.24, lanes=lanes),
            stage("scan", 0.06),
            stage("cut", 0.06),
            stage("judge", 0.06, pool="net"),
        )
    )


def listed(clips: int) -> Iterator[Row]:
    return ({"unit": f"s{number:08d}"} for number in range(clips // CLIPS))


def work(folder: Path, clips: int, executor: ExecutorConfig) -> None:
    """The run itself, in a process of its own; prints what it took as JSON."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    rows = run_flow(instant_flow(), listed(clips), Ledger(folder / "ledger"), executor, "flow")
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "seconds": round(time.monotonic() - begun, 1),
        "driver_cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "listed": rows.keys.num_rows,
    }
    print(json.dumps(figures), flush=True)


def run(folder: Path, clips: int, kind: str, kill_at: int = 0) -> dict[str, Any]:
    """One run, with the CPU seconds of all its processes, the peak memory of the driver and when the first source was
    finished; with `kill_at` killed when so many are."""
    command = [sys.executable, "-m", "tests.benchmarks.large_flow", "--work", "--clips", str(clips)]
    command += ["--executor", kind, "--folder", str(folder)]
    finished = Finished(folder / "ledger" / FLOW)
    before, first, peak, begun = finished.count(), 0.0, 0.0, time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root, cpu = psutil.Process(process.pid), dict[int, float]()
    while process.poll() is None:
        for each in [root, *_children(root)]:
            try:
                spent = each.cpu_times()
            except psutil.Error:
                continue
            cpu[each.pid] = spent.user + spent.system
        peak = max(peak, _peak_mb(process.pid))
        done = finished.count()
        if not first and done > before:
            first = time.monotonic() - begun
        if kill_at and done >= kill_at:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.2)
    out, _ = process.communicate()
    if process.returncode and not kill_at:
        raise SystemExit(f"the run ended with {process.returncode}")
    figures = json.loads(out) if out else {"seconds": round(time.monotonic() - begun, 1)}
    more = {"peak_mb": round(peak), "all_cpu": round(sum(cpu.values()), 1), "first_finished_s": round(first, 1)}
    return figures | more | {"finished_before": before}


class Finished:
    """Counts the sources that the journal of a flow has as finished, reading what was added since."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._read, self._count = folder, 0, 0

    def count(self) -> int:
        """How many there are now; when they are being merged, how many there were."""
        for file in self._folder.glob("finished-*.jsonl"):
            with suppress(FileNotFoundError), open(file, "rb") as lines:
                lines.seek(self._read)
                added = lines.read()
                self._read, self._count = self._read + len(added), self._count + added.count(b"\n")
        return self._count


def _peak_mb(process: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def measure_overlap(folder: Path, kind: str, units: int) -> None:
    """The wall time against that of the busiest resource, and when the first unit was through."""
    import ray

    log = folder / "log"
    if kind == "ray":
        ray.init(num_cpus=2, resources={"pool:net": 1}, include_dashboard=False, log_to_driver=False)
    rows = ({"unit": f"u{number}"} for number in range(units))
    run_flow(sleeping_flow(log), rows, Ledger(folder / "ledger"), ExecutorConfig(kind, 2), "overlap")  # type: ignore[arg-type]
    ends = [(name, float(at)) for name, at in (line.split() for line in log.read_text().splitlines())]
    began = ends[0][1] - 0.24
    through = min(at for name, at in ends if name == "judge")
    downloads = sum(name == "download" and at <= through for name, at in ends)
    wall, ideal = max(at for _, at in ends) - began, units * 0.06
    print(f"{units} units: {wall:.1f} s, busiest resource {ideal:.1f} s, ratio {wall / ideal:.3f}")
    print(f"first through when {downloads} of {units} downloads were done ({100 * downloads / units:.1f} %)")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--executor", choices=["process", "ray"], default="ray")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--work", action="store_true")
    options = parser.parse_args()
    if options.work:
        work(options.folder, options.clips, ExecutorConfig(options.executor, 2))
        return
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    if options.overlap:
        measure_overlap(options.folder, options.executor, options.units)
        return
    sources = options.clips // CLIPS
    passed = sources + options.clips * STAGES
    print(f"{options.clips} clips, {options.executor}, {os.cpu_count()} cores", flush=True)
    killed = run(options.folder, options.clips, options.executor, int(KILL_AT * sources))
    print("killed near the end:", killed, flush=True)
    after = run(options.folder, options.clips, options.executor)
    print("gone on:", after, flush=True)
    print("all done already:", run(options.folder, options.clips, options.executor), flush=True)
    print(f"{1000 * (killed['all_cpu'] + after['all_cpu']) / passed:.3f} ms of CPU per unit x stage", flush=True)
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
