"""The loop itself, with workers that die when the test says so; test_executors has real ones."""

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from common.executors.dispatch import GROUP_SECONDS, LoadError, Pause, attempts, open_slot
from common.executors.workers import InProcessWorker, WorkerTask
from common.ledger.store import Outcome, Unit


class Gone(Exception):
    """How the workers of this file die."""


@dataclass
class Scripted:
    """A job that answers each unit with what its row says."""

    log: list[str] = field(default_factory=list)

    def load(self) -> None:
        self.log.append("load")

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        self.log.append(f"{unit['unit']} {attempt}")
        pause = unit.get("pauses", [])
        outputs = {"pause_seconds": pause.pop()} if pause else {}
        return Outcome(unit["unit"], "pending" if outputs else "kept", outputs=outputs, attempt=attempt)


@dataclass
class Mortal(InProcessWorker):
    """Dies of the units whose row says so, and of nothing else."""

    death = (Gone,)

    def __init__(self, dies_loading: bool = False) -> None:
        super().__init__()
        self.dies_loading = dies_loading

    def load(self, job: WorkerTask | None) -> "Future[None]":
        if not self.dies_loading:
            return super().load(job)
        dead: Future[None] = Future()
        dead.set_exception(Gone())
        return dead

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        if not (self.dies_loading or unit.get("dies")):
            return super().submit(unit, attempt)
        dead: Future[Outcome] = Future()
        dead.set_exception(Gone())
        return dead


def test_units_are_done_in_the_order_of_the_queue_and_those_added_later_at_its_end() -> None:
    job, todo = Scripted(), deque([2, 0, 1])
    rows = [{"unit": name} for name in "abc"]
    ended = []
    for index, outcome in attempts(rows, todo, lambda index: 1 + len(ended) // 3, [open_slot(Mortal, lambda: job)]):
        ended.append(index)
        if len(ended) == 3:
            todo.append(2)
        assert outcome.unit == rows[index]["unit"]
    assert ended == [2, 0, 1, 2] and job.log == ["load", "c 1", "a 1", "b 1", "c 2"]


def test_crashed_workers_are_replaced_and_watch_is_called_before_their_unit_fails() -> None:
    job, pauses_seen = Scripted(), list[Pause]()
    rows = [{"unit": "a"}, {"unit": "b", "dies": True}, {"unit": "c"}]
    slot = open_slot(Mortal, lambda: job)
    results = dict(attempts(rows, deque(range(3)), lambda index: 1, [slot], watch=pauses_seen.append))
    assert (results[1].state, results[1].error_class) == ("failed", "WorkerDied") and len(pauses_seen) == 1
    assert results[0].state == results[2].state == "kept" and job.log == ["load", "a 1", "load", "c 1"]

    def refuse(pause: Pause) -> None:
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        list(attempts(rows, deque([1]), lambda index: 1, [open_slot(Mortal, lambda: job)], watch=refuse))


def test_a_crash_while_loading_before_any_result_ends_the_stage() -> None:
    slot = open_slot(lambda: Mortal(dies_loading=True), Scripted)
    with pytest.raises(LoadError, match="died loading its models"):
        list(attempts([{"unit": "a"}], deque([0]), lambda index: 1, [slot]))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_death_says_its_signal_and_waits_a_moment_for_the_same_to_this_process(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(Mortal, "death_reason", lambda worker: f"was killed by signal {name}")
    rows = [{"unit": "a", "dies": True}]
    ((_, outcome),) = attempts(rows, deque([0]), lambda index: 1, [open_slot(Mortal, Scripted)])
    assert outcome.message == f"The worker process was lost on this unit: it was killed by signal {name}."
    assert waits == ([] if name == "SIGKILL" else [GROUP_SECONDS])
    assert "memory" not in outcome.message


def test_paused_slots_resume_and_the_first_takes_the_next_unit() -> None:
    first, second, pauses_seen = Scripted(), Scripted(), list[Pause]()
    rows: list[Unit] = [{"unit": "a", "pauses": [1.2]}, {"unit": "b", "pauses": [3.0]}]
    slots = [open_slot(Mortal, lambda: first, "one"), open_slot(Mortal, lambda: second, "two")]
    todo, started, ended = deque([0, 1]), time.monotonic(), []
    for index, outcome in attempts(rows, todo, lambda index: 1, slots, watch=pauses_seen.append):
        ended.append((index, outcome.state))
        if outcome.state == "pending":
            todo.append(index)
    assert ended == [(0, "pending"), (1, "pending"), (0, "kept"), (1, "kept")]
    # Place one resumes first and does both; place two had its own unit before.
    assert first.log == ["load", "a 1", "a 1", "b 1"] and second.log == ["load", "b 1"]
    assert 1.2 <= time.monotonic() - started < 3.0
    assert (pauses_seen[0].busy, pauses_seen[0].resting) == (0, 2) and 0 < pauses_seen[0].seconds < 1.2
