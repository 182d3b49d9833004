"""The loop itself, with workers that die when the test says so; test_run has real ones."""

import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.executors import dispatch
from common.executors.dispatch import GROUP_SECONDS, Dispatcher, Record, Slot
from common.executors.flow import Done, Flow, Step, Task
from common.executors.host import Host
from common.executors.retry import RetryPolicy
from common.executors.stage import StageError
from common.executors.workers import InProcessWorker
from common.ledger.store import Last, Outcome
from tests.common.executors.function_stage import FunctionStage

Row = dict[str, Any]


class Gone(Exception):
    """How the workers of this file die."""


class Mortal(InProcessWorker):
    """Dies of the units whose row says so, in the middle of a hand-out, and of nothing else."""

    ahead, death = 1, (Gone,)
    gone = False

    def submit(self, tasks: Sequence[Task]) -> "Future[list[Done]]":
        rows = [pickle.loads(task.row) for task in tasks]
        fatal = next((number for number, row in enumerate(rows) if row.get("dies")), None)
        if fatal is None and not self.gone:
            return super().submit(tasks)
        if self.gone:
            return dead()
        self.gone = True
        lines = [self.host._run(task).line for task in tasks[:fatal]]
        if self.host.ledger is not None and len(tasks) > 1 and (file := self.host.journal(tasks[0].step)):
            file.write_bytes(b"".join(lines))
        return dead()


def dead() -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(Gone())
    return future


class Log(Record):
    """What ended, in order, and how many listed rows are done."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str, str]] = []
        self.lines: list[bytes] = []
        self.done: list[str] = []

    def ended(self, step: int, line: bytes, last: Last, again: bool) -> None:
        self.ends.append((step, last.state, last.error_class))
        self.lines.append(line)

    def finished(self, root: str) -> None:
        self.done.append(root)


def work(log: list[str], name: str, row: Row) -> Outcome:
    log.append(f"{name} {row['unit']}")
    pause = row.get("pauses", [])
    time.sleep(row.get("sleep", 0.0))
    if pause and [line.split()[1] for line in log].count(row["unit"]) == 1:
        return Outcome(row["unit"], "pending", outputs={"pause_seconds": pause[0]})
    children = [{"unit": f"{row['unit']}.{n}"} for n in range(row.get("children", 0))]
    return Outcome(row["unit"], "kept", outputs={"rows": children})


def stage(name: str, log: list[str], lanes: tuple[str, ...] = ()) -> FunctionStage:
    return FunctionStage(name, "1", {}, {}, lambda *lane: partial(work, log, "".join(lane) or name), ("unit",), lanes)


def children(row: Row) -> list[Row]:
    return list(row["rows"])


def play(
    flow: Flow,
    rows: list[Row],
    slots: Sequence[tuple[list[int], str]] = (([0], ""),),
    watch: Callable[[], None] = lambda: None,
    ledger: Path | None = None,
    worker: type[InProcessWorker] = Mortal,
    crashes: int = 2,
) -> Log:
    record, policy = Log(), RetryPolicy(retry_crashes=crashes)
    hosts = [Host(flow, policy, lane, ledger=ledger, number=number) for number, (_, lane) in enumerate(slots)]
    places = [Slot(partial(worker, host), steps, lane) for host, (steps, lane) in zip(hosts, slots, strict=True)]
    digest = flow.steps[0].stage.input_hash
    tasks = (Task(0, row["unit"], row["unit"], digest(row), pickle.dumps(row)) for row in rows)
    Dispatcher(flow, policy, places, record, tasks, watch).run()
    return record


def test_rows_finish_before_new_ones_begin() -> None:
    log: list[str] = []
    flow = Flow((Step(stage("one", log), then=children), Step(stage("two", log))), keeps_rows=False)
    record = play(flow, [{"unit": name, "children": 2} for name in "abc"], [([0, 1], "")], worker=InProcessWorker)
    assert log == [
        "one a", "two a.0", "two a.1", "one b", "two b.0", "two b.1", "one c", "two c.0", "two c.1",
    ]  # fmt: skip
    assert record.done == ["a", "b", "c"] and len(record.ends) == 9


def test_the_cluster_is_watched_while_units_keep_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one has no second without a result."""
    monkeypatch.setattr(dispatch, "WATCH_SECONDS", 0.0)
    log, watched = list[str](), list[int]()
    flow = Flow((Step(stage("one", log)),), keeps_rows=False)
    play(flow, [{"unit": name} for name in "abc"], watch=lambda: watched.append(len(log)), worker=InProcessWorker)
    assert watched == [1, 2, 3]


def test_what_waits_after_a_step_holds_it_back() -> None:
    """Nobody ever does the second step: the first goes on only until enough waits there."""

    class Slow(InProcessWorker):
        def submit(self, tasks: Sequence[Task]) -> "Future[list[Done]]":
            return Future() if tasks[0].step == 1 else super().submit(tasks)

    def stop() -> None:
        raise TimeoutError

    log: list[str] = []
    flow = Flow((Step(stage("one", log)), Step(stage("two", log))), keeps_rows=False)
    with pytest.raises(TimeoutError):
        play(flow, [{"unit": f"u{number}"} for number in range(400)], [([0], ""), ([1], "")], stop, worker=Slow)
    assert 32 < len(log) < 200


def test_a_worker_that_died_is_replaced_and_the_unit_it_had_alone_is_to_blame() -> None:
    log: list[str] = []
    calls: list[int] = []
    flow = Flow((Step(stage("one", log)),), keeps_rows=False)
    rows: list[Row] = [{"unit": "a"}, {"unit": "b", "dies": True}, {"unit": "c"}]
    record = play(flow, rows, watch=lambda: calls.append(len(log)))
    assert sorted(record.ends) == [
        (0, "failed", "Quarantined"),
        *[(0, "failed", "WorkerDied")] * 2,
        *[(0, "kept", "")] * 2,
    ]
    assert log == ["one a", "one c"] and len(calls) >= 3 and sorted(record.done) == ["a", "b", "c"]

    def refuse() -> None:
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        play(flow, rows, watch=refuse)


@pytest.mark.parametrize("journal", [False, True])
def test_units_that_were_in_hand_with_the_fatal_one_are_not_blamed(tmp_path: Path, journal: bool) -> None:
    """With the worker's journal nothing is done twice; without, all run alone from then on."""
    log: list[str] = []
    flow = Flow((Step(stage("one", log)),), keeps_rows=False)
    rows: list[Row] = [{"unit": f"u{n}", "dies": n == 20} for n in range(40)]
    record = play(flow, rows, ledger=tmp_path if journal else None)
    assert record.ends.count((0, "kept", "")) == 39 and record.ends.count((0, "failed", "Quarantined")) == 1
    assert len({line for line in log}) == 39 and sorted(record.done) == sorted(row["unit"] for row in rows)
    assert (len(log) == 39) == journal


def test_a_step_whose_workers_die_loading_stops_only_what_needs_it() -> None:
    """Three in a row: a single one may have been killed."""
    loads: list[int] = []
    fatal = 2

    class Deadly(Mortal):
        def load(self, step: int) -> "Future[list[int]]":
            loads.append(step)
            self.gone = step == 1 and loads.count(1) <= fatal
            return dead() if self.gone else super().load(step)

    log: list[str] = []
    flow = Flow((Step(stage("one", log)), Step(stage("two", log))), keeps_rows=False)
    rows: list[Row] = [{"unit": name} for name in "abc"]
    assert len(play(flow, rows, [([0, 1], "")], worker=Deadly).ends) == 6
    loads.clear()
    log.clear()
    fatal = 3
    with pytest.raises(StageError, match="Stage 'two' cannot start: workers die loading its models"):
        play(flow, rows, [([0, 1], "")], worker=Deadly)
    assert sorted(log) == ["one a", "one b", "one c"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_death_says_its_signal_and_waits_a_moment_for_the_same_to_this_process(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(Mortal, "death_reason", lambda worker: f"was killed by signal {name}")
    flow = Flow((Step(stage("one", [])),), keeps_rows=False)
    (line,) = play(flow, [{"unit": "a", "dies": True}], crashes=0).lines
    assert f"The worker process was lost on this unit: it was killed by signal {name}." in line.decode()
    assert waits == ([] if name == "SIGKILL" else [GROUP_SECONDS]) and b"memory" not in line


def test_paused_slots_resume_and_the_first_takes_the_next_unit() -> None:
    log: list[str] = []
    rows: list[Row] = [{"unit": "a", "pauses": [0.4]}, {"unit": "b", "pauses": [1.5]}]
    flow = Flow((Step(stage("fetch", log, ("one", "two"))),), keeps_rows=False)
    started = time.monotonic()
    record = play(flow, rows, [([0], "one"), ([0], "two")])
    assert [state for _, state, _ in record.ends] == ["pending", "pending", "kept", "kept"]
    # The first lane resumes first and does both; the second had its own unit before.
    assert log == ["one a", "two b", "one a", "one b"]
    assert 0.4 <= time.monotonic() - started < 1.5
