"""Flow: stages that every row goes through by itself, and what is known of a row on its way.

A row enters at the first step that wants it. When its stage has kept it, it goes on to the next step at once, whatever
other rows do; a stage that returns `rows` sends each of them on. A row leaves at the end, when a stage refuses it, or
where a step says so. What the ledger knows of a row already is not done again.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.executors.stage import Stage
from common.ledger.jsonlines import json_bytes
from common.ledger.store import DIED, Last, Outcome, State, ledger_line, worker_crashes
from common.runs import fingerprint, plain

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
    """A row on its way: its place in the flow, and what is known of its last attempt there. `row` is `packed`;
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
    on, and `results` are those that left the flow: the ledger's row, what it says, and the stage. `products` are files
    and their bytes."""

    state: State = "kept"
    last: Last | None = None
    again: bool = False
    pause: float | None = None
    seconds: float = 0.0
    line: bytes = b""
    following: tuple[Task, ...] = ()
    results: tuple[tuple[bytes, Last, str], ...] = ()
    products: tuple[tuple[str, int | None], ...] = ()


UNPLACED = -1
RESULTS = "results"  # stage under which the rows that left a flow are recorded


def packed(row: Row) -> bytes:
    """A row as bytes, as it travels between this process and its workers."""
    return pickle.dumps(row)


def unpacked(row: bytes) -> Row:
    """What `packed` made. Never of bytes that come from elsewhere: they could run code."""
    return dict(pickle.loads(row))


def failed_row(row: Row, stage: str, outcome: Outcome) -> Row:
    """A row with what refused it."""
    reason = f"failed {stage}" if outcome.state == "failed" else outcome.reason
    why = {"decision": outcome.state, "reasons": [reason], "message": outcome.message}
    return row | outcome.outputs | why | {"error_class": outcome.error_class}


def result_line(flow_print: str, root: str, row: Row, last: Last, generation: int) -> bytes:
    """The ledger's row of a row that has left a flow, under the input hash of the listed row that it came of."""
    error, text = last.error_class, json_bytes(row).decode()
    outcome = Outcome(row["unit"], last.state, attempt=generation, error_class=error, outputs_json=text)
    return ledger_line((row["unit"], root), RESULTS, flow_print, outcome)
