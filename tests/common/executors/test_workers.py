import os
import pickle
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import pytest

from common.executors import host as hosts
from common.executors.flow import Flow, Step, Task
from common.executors.host import Host
from common.executors.retry import RetryPolicy
from common.executors.workers import InProcessWorker, ProcessWorker
from common.ledger.store import Outcome
from tests.common.executors.function_stage import FunctionStage

ALIVE: list[str] = []  # names of the models this process holds


class Model:
    """Says that it is held."""

    def __init__(self, name: str) -> None:
        self.name = name
        ALIVE.append(name)

    def __del__(self) -> None:
        ALIVE.remove(self.name)

    def __call__(self, row: dict[str, Any]) -> Outcome:
        if row.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(row["unit"], "rejected", outputs={"pid": os.getpid(), "alive": list(ALIVE)})


def model(name: str) -> Callable[[dict[str, Any]], Outcome]:
    return Model(name)


def host() -> Host:
    steps = [Step(FunctionStage(name, "1", {}, {}, partial(model, name))) for name in "ab"]
    return Host(Flow(tuple(steps)), RetryPolicy())


def task(step: int, **row: Any) -> Task:
    return Task(step, "u", "u", "u", pickle.dumps({"unit": "u", **row}))


def left(worker: InProcessWorker | ProcessWorker, step: int) -> str:
    """The row that a unit left as, as JSON in JSON."""
    (done,) = worker.submit([task(step)]).result()
    return done.results[0][0].decode()


@pytest.fixture
def worker() -> Iterator[ProcessWorker]:
    worker = ProcessWorker(host())
    yield worker
    worker.stop()


def test_a_process_holds_the_models_of_several_steps_as_far_as_they_fit(
    worker: ProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.load(0).result() == [0] and worker.load(1).result() == [0, 1]
    assert r"[\\\"a\\\", \\\"b\\\"]" in left(worker, 0) or '"a' in left(worker, 0)
    here = InProcessWorker(host())
    monkeypatch.setattr(hosts, "HELD_BYTES", 1)
    monkeypatch.setattr(FunctionStage, "weight_bytes", 1)
    assert here.load(0).result() == [0] and here.load(1).result() == [1] and ALIVE == ["b"]
    here.stop()
    assert ALIVE == []


def test_a_crash_is_raised_by_the_unit_and_by_the_next_call(worker: ProcessWorker) -> None:
    worker.load(0)
    with pytest.raises(worker.death):
        worker.submit([task(0, die=True)]).result()
    with pytest.raises(worker.death):
        worker.load(1)
    assert worker.death_reason() == "was killed by signal SIGKILL"


def test_stopping_now_interrupts_a_unit() -> None:
    worker = ProcessWorker(host())
    worker.load(0)
    left(worker, 0)
    (process,) = [psutil.Process(each.pid) for each in worker._processes]
    worker.stop()
    assert not psutil.wait_procs([process], timeout=20)[1]
