"""What carrying a stage costs: Ray and our own processes against `multiprocessing.Pool(2)` doing the same jobs.

Wall seconds, because the work is done in other processes; both sides start their workers, Ray itself runs already.
"""

import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger, Outcome
from tests.benchmarks.large_flow import CLIPS, STAGES, run
from tests.benchmarks.measure import Row
from tests.common.executors.function_stage import FunctionStage

JOBS, SECONDS, ROUNDS = 12, 1.0, 3
Unit = dict[str, object]


def work(unit: Unit) -> Outcome:
    """A second of waiting: the cores are not what is measured."""
    time.sleep(SECONDS)
    return Outcome(str(unit["unit"]), "kept")


def make() -> Callable[[Unit], Outcome]:
    return work


@pytest.mark.parametrize(("kind", "aim"), [("ray", 1.15), ("process", 1.15)])
def test_two_workers(report: Callable[[Row], None], kind: str, aim: float) -> None:
    """Twelve jobs of a second on two workers, each with its durable ledger row, against a bare pool."""
    units: list[Unit] = [{"unit": f"u{n}"} for n in range(JOBS)]
    stage = FunctionStage("wait", "1", {}, {}, make)

    def ours() -> list[Outcome]:
        with TemporaryDirectory() as folder:
            return run_stage(stage, units, Ledger(Path(folder)), ExecutorConfig(kind, 2))  # type: ignore[arg-type]

    def peer() -> list[Outcome]:
        with get_context("spawn").Pool(2) as pool:
            return pool.map(work, units, chunksize=1)

    assert [outcome.unit for outcome in ours()] == [outcome.unit for outcome in peer()]
    pairs = [(wall_seconds(ours), wall_seconds(peer)) for _ in range(ROUNDS)]
    ours_seconds, peer_seconds = (tuple(side) for side in zip(*pairs, strict=True))
    report(Row(f"{kind}, 12 jobs of 1 s on 2 workers (wall)", "multiprocessing.Pool", ours_seconds, peer_seconds, aim))


def wall_seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@pytest.mark.parametrize("clips", [10_000, 30_000])
def test_flow_of_instant_stages(report: Callable[[Row], None], clips: int) -> None:
    """CPU milliseconds per unit and stage on Ray, of all processes, with outputs of 2.4 KB, against 0.6."""
    with TemporaryDirectory() as folder:
        figures = run(Path(folder), clips, "ray")
    each = 1000 * figures["all_cpu"] / (clips // CLIPS + clips * STAGES)
    report(Row(f"flow of {clips:,} clips x 4 stages on Ray, CPU ms each", "0.6 ms", (each,), (0.6,), 1.0, "ms"))
