"""Flow: stages that every row goes through by itself, and what a worker does with a row on its way.

A row enters at the first step that wants it. When its stage has kept it, it goes on to the next step at once, whatever
other rows do; a stage that returns `rows` sends each of them on. A row leaves at the end, when a stage refuses it, or
where a step says so. What the ledger knows of a row already is not done again.
"""

import copy
import gc
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from common.executors.retry import RetryPolicy
from common.executors.runner import Runner
from common.executors.stage import ROWS, Stage
from common.ledger.store import DIED, PAUSE, Last, Outcome, State, journal_file, ledger_line, worker_crashes
from common.runs import disk_guard, fingerprint, plain

Row = dict[str, Any]
HELD_BYTES = 2**31  # weights that one worker holds at a time, of several stages


@dataclass(frozen=True)
class Step:
    """A stage of a flow. Rows for which `passes` is true go by it; rows for which `leaves` is true leave the flow
    before it, kept. `then` makes of a kept row, its outputs written into it, the row that goes on, or the rows; without
    it that is the row itself. All three are called in workers, so they must be picklable.
    """

    stage: Stage[Any]
    passes: Callable[[Row], bool] | None = None
    leaves: Callable[[Row], bool] | None = None
    then: Callable[[Row], Row | list[Row]] | None = None


@dataclass(frozen=True)
class Flow:
    """Steps in their order. `settings` are what `passes`, `leaves` and `then` depend on. With `keeps_rows` rows are
    recorded as they were when they left. Where `most_bytes` is set, steps with lanes are held back while that much is
    fetched for listed rows that are not finished (back-pressure by bytes on disk)."""

    steps: tuple[Step, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    keeps_rows: bool = True
    most_bytes: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when rows would leave the flow with other values."""
        return fingerprint([[step.stage.fingerprint for step in self.steps], plain(self.settings)])


class Recorded(NamedTuple):
    """What the ledger knows of one unit at one step; `outputs` is JSON."""

    step: int
    unit: str
    input_hash: str
    state: State
    reason: str
    message: str
    attempt: int
    error_class: str
    worker_crashes: int
    outputs: str


def recorded(step: int, row: Mapping[str, Any]) -> Recorded:
    """What a row of the ledger says of a unit at a step."""
    crashes = worker_crashes(row["outputs"]) if row["error_class"] == DIED else 0
    named = {name: row[name] for name in Recorded._fields[1:] if name in row}
    return Recorded(step=step, worker_crashes=crashes, **named)


class Task(NamedTuple):
    """A row on its way: its place in the flow, and what is known of its last attempt there. `row` is pickled;
    `recorded` is what the ledger knows of it and of the rows that come of it, at steps after this one. `spent` counts
    the attempts before a fresh set of them."""

    step: int  # UNPLACED: not known yet, to be found out by a worker
    root: str  # input hash of the listed row that it came of
    unit: str
    input_hash: str
    row: bytes
    last: Last | None = None
    spent: int = 0
    recorded: tuple[Recorded, ...] = ()
    alone: bool = False  # a worker died with it in hand: given out by itself, to know whether it was this one


class Done(NamedTuple):
    """What became of one task. `line` is the ledger's row, empty where nothing was run. `again`: the task goes back to
    the queue, after a `pause` of its worker (seconds) where there is one; otherwise `following` are the rows that go
    on, and `left` are those that left the flow: the ledger's row, what it says, and the stage. `products` are files and their
    bytes."""

    state: State = "kept"
    last: Last | None = None
    again: bool = False
    pause: float | None = None
    seconds: float = 0.0
    line: bytes = b""
    following: tuple[Task, ...] = ()
    left: tuple[tuple[bytes, Last, str], ...] = ()
    products: tuple[tuple[str, int | None], ...] = ()


UNPLACED = -1
LEFT = "left"  # stage under which the rows that left a flow are recorded


class Host:
    """The part of a flow that runs in a worker: holds the models of one or more stages and runs tasks, one by one."""

    def __init__(
        self,
        flow: Flow,
        policy: RetryPolicy,
        lane: str = "",
        gpus: float = 0.0,
        generation: int = 1,
        ledger: Path | None = None,
        number: int = 0,
    ) -> None:
        self.flow, self.policy, self.lane, self.gpus, self.generation = flow, policy, lane, gpus, generation
        self.ledger, self.number = ledger, number  # for the journals of this worker
        self._runners: dict[int, Runner] = {}
        self._prints = [step.stage.fingerprint for step in flow.steps]
        self._flow_print = flow.fingerprint

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What makes an equal host."""
        return self.flow, self.policy, self.lane, self.gpus, self.generation, self.ledger, self.number

    def journal(self, step: int) -> Path | None:
        """The file for the ledger's rows of a hand-out of this step, where there is one."""
        name = f"{self.flow.steps[step].stage.name}-{self._prints[step]}"
        return None if self.ledger is None or step == UNPLACED else journal_file(self.ledger, name, self.number)

    def ping(self) -> None:
        """Answers when the worker has started."""

    def load(self, step: int) -> list[int]:
        """Load the models of a step; returns the steps whose models are held. Others are released, the oldest first,
        where all would be more than `HELD_BYTES`."""
        stage = self.flow.steps[step].stage
        self._runners.pop(step, None)
        sizes = {number: self.flow.steps[number].stage.weight_bytes for number in self._runners}
        while sizes and sum(sizes.values()) + stage.weight_bytes > HELD_BYTES:
            oldest = next(iter(sizes))
            del sizes[oldest], self._runners[oldest]
        gc.collect()  # free them before the next ones are read
        # A copy: what it loads is released with the runner.
        runner = Runner(copy.copy(stage.in_lane(self.lane) if stage.lanes else stage), self.gpus)
        runner.load()
        self._runners[step] = runner
        return list(self._runners)

    def run(self, tasks: Sequence[Task]) -> list[Done]:
        """Run tasks, one after the other. Where there are several, the journal has a line for each, its row of the
        ledger, before the next begins, if the folder can be seen from here: a death then says which was in work."""
        journal = self.journal(tasks[0].step)
        if len(tasks) == 1 or journal is None or not journal.parent.is_dir():
            return [self._run(task) for task in tasks]
        done = []
        with disk_guard(journal), open(journal, "wb", buffering=0) as file:
            for task in tasks:
                done.append(self._run(task))
                file.write(done[-1].line or b"{}\n")
        return done

    def _run(self, task: Task) -> Done:
        row: Row = pickle.loads(task.row)
        if any(record[:3] == (task.step, task.unit, task.input_hash) for record in task.recorded):
            return self._advance(task, row, task.step, Done())
        if task.step == UNPLACED:
            return self._advance(task, row, 0, Done())
        attempt = self.policy.next_attempt(task.last)
        outcome = self._runners[task.step].attempt(row, attempt)
        key = (task.unit, task.input_hash)
        line = ledger_line(key, self.flow.steps[task.step].stage.name, self._prints[task.step], outcome)
        last = Last(outcome.state, attempt, outcome.error_class)
        pause = outcome.outputs.get(PAUSE) if outcome.state == "pending" else None
        again = pause is not None or self.policy.again(last, task.spent)
        done = Done(outcome.state, last, again, pause, outcome.seconds, line)
        if again:
            return done
        return self._go_on(task, row, task.step, replace(outcome, outputs=_outputs(outcome)), done)

    def _go_on(self, task: Task, row: Row, step: int, outcome: Outcome, done: Done) -> Done:
        """What follows a settled outcome of a row at a step."""
        if outcome.state != "kept":
            stage = self.flow.steps[step].stage.name
            last = Last(outcome.state, outcome.attempt, outcome.error_class)
            return self._leave(task, failed_row(row, stage, outcome), last, done, stage)
        products = self.flow.steps[step].stage.products(row, outcome)
        row |= outcome.outputs
        done = done._replace(products=done.products + tuple((str(path), size) for path, size in products.items()))
        then = self.flow.steps[step].then
        following = then(row) if then is not None else row
        if not isinstance(following, list):
            return self._advance(task, following, step + 1, done)
        row.pop(ROWS, None)
        done = self._leave(task, row, Last("kept", 1), done)
        of_child: dict[str, list[Recorded]] = {}
        for record in task.recorded:
            of_child.setdefault(record.unit, []).append(record)
        for child in following:
            known = tuple(of_child.get(child["unit"], ()))
            done = self._advance(task._replace(recorded=known), child, step + 1, done)
        return done

    def _advance(self, task: Task, row: Row, step: int, done: Done) -> Done:
        """Take a row to the next step at which something has to be run, past what the ledger knows."""
        for number in range(step, len(self.flow.steps)):
            here = self.flow.steps[number]
            if here.leaves is not None and here.leaves(row):
                break
            if here.passes is not None and here.passes(row):
                continue
            digest = here.stage.input_hash(row)
            known = next((r for r in task.recorded if r[:3] == (number, row["unit"], digest)), None)
            if known is None:
                return self._wait(task, row, number, digest, None, done)
            last = Last(known.state, known.attempt, known.error_class, known.worker_crashes)
            outcome = Outcome(
                known.unit, known.state, known.reason, known.message, json.loads(known.outputs), attempt=known.attempt
            )
            lost = known.state == "kept" and not here.stage.product_exists(row, outcome)
            if lost or not self.policy.settled(last):
                return self._wait(task, row, number, digest, last, done)
            return self._go_on(task, row, number, replace(outcome, error_class=known.error_class), done)
        return self._leave(task, row, Last("kept", 1), done)

    def _wait(self, task: Task, row: Row, step: int, digest: str, last: Last | None, done: Done) -> Done:
        spent = self.policy.spent(last)
        known = tuple(record for record in task.recorded if record.step > step)
        waiting = Task(step, task.root, row["unit"], digest, pickle.dumps(row), last, spent, known)
        return done._replace(following=(*done.following, waiting))

    def _leave(self, task: Task, row: Row, last: Last, done: Done, stage: str = "") -> Done:
        keeps = self.flow.keeps_rows
        line = left_line(self._flow_print, task.root, row, last, self.generation) if keeps else b""
        return done._replace(left=(*done.left, (line, last, stage)))


def failed_row(row: Row, stage: str, outcome: Outcome) -> Row:
    """A row with what refused it."""
    reason = f"failed {stage}" if outcome.state == "failed" else outcome.reason
    why = {"decision": outcome.state, "reasons": [reason], "message": outcome.message}
    return row | outcome.outputs | why | {"error_class": outcome.error_class}


def left_line(flow_print: str, root: str, row: Row, last: Last, generation: int) -> bytes:
    """The ledger's row of a row that has left a flow, under the input hash of the listed row that it came of."""
    error, text = last.error_class, json.dumps(row)
    outcome = Outcome(row["unit"], last.state, attempt=generation, error_class=error, outputs_json=text)
    return ledger_line((row["unit"], root), LEFT, flow_print, outcome)


def _outputs(outcome: Outcome) -> dict[str, Any]:
    return json.loads(outcome.outputs_json) if outcome.outputs_json else dict(outcome.outputs)
