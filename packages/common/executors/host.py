"""Host: the part of a flow that runs in a worker, with the models of its stages."""

import copy
import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from common.executors.exchange import FILES, Exchange, ExchangingStage
from common.executors.flow import (
    HELD_BYTES,
    UNPLACED,
    Done,
    Flow,
    Recorded,
    Row,
    Task,
    failed_row,
    packed,
    result_line,
    unpacked,
)
from common.executors.retry import RetryPolicy
from common.executors.runner import Runner
from common.executors.stage import ROWS, Stage
from common.ledger.jsonlines import json_value
from common.ledger.store import HAND_OUT, PAUSE, Last, Outcome, clean, journal_file, ledger_line
from common.runs import disk_guard, temporary_beside
from common.storage import StorageError


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
        exchange: Exchange | None = None,
    ) -> None:
        self.flow, self.policy, self.lane, self.gpus, self.generation = flow, policy, lane, gpus, generation
        self.ledger, self.number = ledger, number  # for the journals of this worker
        self.exchange = exchange
        self._noted: dict[Path, list[bytes]] = {}  # lines of the last hand-out, by journal
        self._runners: dict[int, Runner] = {}
        self._prints = [step.stage.fingerprint for step in flow.steps]
        self._flow_print = flow.fingerprint

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What makes an equal host."""
        return self.flow, self.policy, self.lane, self.gpus, self.generation, self.ledger, self.number, self.exchange

    def journal(self, step: int) -> Path | None:
        """The file for the ledger's rows of a hand-out of this step, where there is one."""
        name = f"{self.flow.steps[step].stage.name}-{self._prints[step]}"
        return None if self.ledger is None or step == UNPLACED else journal_file(self.ledger, name, self.number)

    def load(self, step: int) -> list[int]:
        """Load the models of a step; returns the steps whose models are held. Others are released, the oldest first,
        where all would be more than `HELD_BYTES`."""
        stage = self.flow.steps[step].stage
        before = len(self._runners)
        self._runners.pop(step, None)
        sizes = {number: self.flow.steps[number].stage.weight_bytes for number in self._runners}
        while sizes and sum(sizes.values()) + stage.weight_bytes > HELD_BYTES:
            oldest = next(iter(sizes))
            del sizes[oldest], self._runners[oldest]
        if len(self._runners) < before:
            gc.collect()  # free them before the next ones are read
        # A copy: what it loads is released with the runner.
        own: Any = copy.copy(stage.in_lane(self.lane) if stage.lanes else stage)
        if self.exchange is not None:
            own = ExchangingStage(own, self.exchange)
        runner = Runner(own, self.gpus)
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
        with disk_guard(journal), self._new_journal(journal) as file:
            for task in tasks:
                done.append(self._run(task))
                file.write(done[-1].line or b"{}\n")
                self._noted[journal].append(done[-1].line)
        return done

    def _new_journal(self, journal: Path) -> FileIO:
        """A journal in place of the one of the hand-out before, whose lines it begins with: the recording process may
        not have them yet, and is killed. Who reads the old file meanwhile keeps it whole."""
        temporary = temporary_beside(journal)
        file = open(temporary, "wb", buffering=0)  # noqa: SIM115 - the caller closes it
        file.write(b"".join(self._noted.get(journal, ())) + HAND_OUT)
        os.replace(temporary, journal)
        self._noted[journal] = []
        return file

    def _run(self, task: Task) -> Done:
        row = unpacked(task.row)
        if any(record[:3] == (task.step, clean(task.unit), task.input_hash) for record in task.recorded):
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
            records = tuple(of_child.get(clean(child["unit"]), ()))
            if FILES in row:
                child = child | {FILES: row[FILES]}
            done = self._advance(task._replace(recorded=records), child, step + 1, done)
        return done

    def _advance(self, task: Task, row: Row, step: int, done: Done) -> Done:
        """Take a row to the next step at which something has to be run, past what the ledger knows."""
        for number in range(step, len(self.flow.steps)):
            at = self.flow.steps[number]
            if at.leaves is not None and at.leaves(row):
                break
            if at.passes is not None and at.passes(row):
                continue
            digest = at.stage.input_hash(row)
            record = next((r for r in task.recorded if r[:3] == (number, clean(row["unit"]), digest)), None)
            if record is None:
                return self._wait(task, row, number, digest, None, done)
            last = Last(record.state, record.attempt, record.error_class, record.worker_crashes)
            outcome = Outcome(
                record.unit,
                record.state,
                record.reason,
                record.message,
                json_value(record.outputs),
                attempt=record.attempt,
            )
            lost = record.state == "kept" and not self._has_products(at.stage, row, outcome)
            if lost or not self.policy.settled(last):
                return self._wait(task, row, number, digest, last, done)
            return self._go_on(task, row, number, replace(outcome, error_class=record.error_class), done)
        return self._leave(task, row, Last("kept", 1), done)

    def _has_products(self, stage: Stage[Any], row: Row, outcome: Outcome) -> bool:
        if self.exchange is not None:
            with suppress(StorageError):
                self.exchange.bring(outcome.outputs.get(FILES, {}))
        return stage.product_exists(row, outcome)

    def _wait(self, task: Task, row: Row, step: int, digest: str, last: Last | None, done: Done) -> Done:
        spent = self.policy.spent(last)
        later = tuple(record for record in task.recorded if record.step > step)
        waiting = Task(step, task.root, row["unit"], digest, packed(row), last, spent, later)
        return done._replace(following=(*done.following, waiting))

    def _leave(self, task: Task, row: Row, last: Last, done: Done, stage: str = "") -> Done:
        keeps = self.flow.keeps_rows
        line = result_line(self._flow_print, task.root, row, last, self.generation) if keeps else b""
        return done._replace(results=(*done.results, (line, last, stage)))


def _outputs(outcome: Outcome) -> dict[str, Any]:
    return json_value(outcome.outputs_json) if outcome.outputs_json else dict(outcome.outputs)
