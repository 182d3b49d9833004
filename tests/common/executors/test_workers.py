import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from common.executors.workers import IdleWorkers, InProcessWorker, ProcessWorker
from common.ledger.store import Outcome, Unit

ALIVE: list[str] = []  # names of the jobs this process holds


@dataclass
class Weights:
    """A job that says where it runs and which jobs are held there beside it."""

    name: str
    loaded: bool = False

    def load(self) -> None:
        self.loaded = True
        ALIVE.append(self.name)

    def __del__(self) -> None:
        if self.loaded:
            ALIVE.remove(self.name)

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        if unit.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(unit["unit"], "kept", outputs={"pid": os.getpid(), "alive": list(ALIVE)}, attempt=attempt)


@pytest.fixture
def worker() -> Iterator[ProcessWorker]:
    worker = ProcessWorker()
    yield worker
    worker.stop()


def test_a_process_takes_one_job_after_the_other_and_frees_the_former(worker: ProcessWorker) -> None:
    seen = []
    for name in ("a", "b"):
        worker.load(Weights(name))
        seen.append(worker.submit({"unit": "u"}, 2).result())
    first, second = (outcome.outputs for outcome in seen)
    assert first["pid"] == second["pid"] != os.getpid() and seen[0].attempt == 2
    assert (first["alive"], second["alive"]) == (["a"], ["b"])


def test_a_crash_is_raised_by_the_unit_and_by_the_next_call(worker: ProcessWorker) -> None:
    worker.load(Weights("a"))
    with pytest.raises(worker.death):
        worker.submit({"unit": "u", "die": True}, 1).result()
    with pytest.raises(worker.death):
        worker.load(Weights("b"))


def test_stopping_now_interrupts_a_unit() -> None:
    worker = ProcessWorker()
    worker.load(Weights("a"))
    pid = worker.submit({"unit": "u"}, 1).result().outputs["pid"]
    process = psutil.Process(pid)
    worker.stop()
    assert not psutil.wait_procs([process], timeout=20)[1]


def test_the_calling_process_frees_its_job_too() -> None:
    worker = InProcessWorker()
    worker.load(Weights("a"))
    assert worker.submit({"unit": "u"}, 1).result().outputs["alive"] == ["a"]
    worker.load(None)
    assert ALIVE == []


def test_idle_workers_are_kept_by_kind_and_dead_ones_dropped(worker: ProcessWorker) -> None:
    idle, dead = IdleWorkers(), ProcessWorker()
    dead.load(Weights("a"))
    pid = dead.submit({"unit": "u"}, 1).result().outputs["pid"]
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with pytest.raises(dead.death):
        dead.submit({"unit": "u"}, 1).result()
    assert dead.death_reason() == "was killed by signal SIGKILL"
    idle.put("small", dead)
    idle.put("large", worker)
    assert idle.count("small") == 0 and idle.count("large") == 1
    assert idle.take("small") is None and idle.take("large") is worker and idle.take("large") is None
    idle.put("large", worker)
    idle.clear(keep="large")
    assert idle.count("large") == 1
    idle.clear()
    assert idle.count("large") == 0
