"""Run of a flow over listed rows: what is done already, what goes in, and what is written down as it comes out.

Beside the ledger of the stages lies one of the flow, in the folder `flow`: `results` has every row as it left the flow,
`finished` every listed row of which nothing is left to do, with the files that it stands for. Both are under the input
hash of the listed row. A run that goes on asks `finished` alone about what is done; of the others it reads what the
stages have recorded, in the order of the list, as they are needed.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from common.executors.config import ExecutorConfig
from common.executors.dispatch import Record, Slot
from common.executors.exchange import FILES, Exchange
from common.executors.flow import RESULTS, UNPLACED, Flow, Recorded, Row, Task, packed, recorded
from common.executors.retry import RetryPolicy, record_unsettled
from common.executors.run import exchange_of, resting_note, run_tasks
from common.executors.stage import ROWS, StageError, is_whole
from common.executors.status import StageHeartbeat
from common.ledger.jsonlines import json_value
from common.ledger.store import (
    FLOW,
    Last,
    Ledger,
    Outcome,
    StageLedger,
    State,
    key_table,
    ledger_files,
    ledger_line,
    ledger_sql,
)
from common.ledger.tables import batches, connection_beside
from common.progress import ProgressBar, progress
from common.runs import disk_guard, fingerprint

FINISHED = "finished"


@dataclass(frozen=True)
class Listed:
    """The rows of a list: unit and input hash of each by position, and the rows themselves in a file."""

    keys: pa.Table
    file: IO[bytes]

    def rows(self, skip: np.ndarray) -> Iterator[tuple[int, str, str, bytes]]:
        """Position, unit, input hash and pickled row of those that are not skipped."""
        self.file.seek(0)
        position = 0
        for batch in self.keys.to_batches():
            for unit, digest in zip(batch["unit"].to_pylist(), batch["input_hash"].to_pylist(), strict=True):
                row = self.file.read(int.from_bytes(self.file.read(4), "little"))
                if not skip[position]:
                    yield position, unit, digest, row
                position += 1


def run_flow(
    flow: Flow,
    listed: Iterable[Row],
    ledger: Ledger,
    executor: ExecutorConfig,
    label: str,
    at_rest: Callable[[], object] | None = None,
) -> "FlowRows":
    """Take every listed row through a flow; returns the rows that left it.

    Equal rows under equal settings give equal rows, however often the run was stopped, and what was recorded is not
    done again. `label` names the progress bar; `at_rest` is called now and then while nothing is being written. Raises
    StageError where a stage cannot start, once all that does not need it is done; DiskFullError; RuntimeError when
    another run is executing the flow.
    """
    policy = RetryPolicy.of(executor)
    folder = Ledger(ledger.folder / FLOW)
    with ExitStack() as stack:
        stack.enter_context(disk_guard(ledger.folder))
        ledger.folder.mkdir(parents=True, exist_ok=True)
        rows = _list(listed, stack.enter_context(tempfile.TemporaryFile(dir=ledger.folder)))
        logs = [stack.enter_context(ledger.open(s.stage.name, s.stage.fingerprint)) for s in flow.steps]
        leaving = stack.enter_context(folder.open(RESULTS, flow.fingerprint))
        finished = stack.enter_context(folder.open(FINISHED, flow.fingerprint))
        for log in (*logs, leaving, finished):
            log.lock()
        for log in logs:
            log.take_over()
        exchange = exchange_of(executor, ledger.folder.parent)
        skip, unsettled, generation = _finished(finished, rows.keys, policy, exchange)
        record = FlowRecord(flow, logs, leaving, finished, unsettled, generation)
        if not skip.all():
            with record.shown(label, rows.keys.num_rows, int(skip.sum())):
                tasks = record.tasks(rows, skip, _recorded(ledger.folder, logs, rows.keys, skip))
                run_tasks(flow, executor, policy, record, tasks, ledger.folder, 2**62, generation, at_rest)
        for log in (*logs, leaving, finished):
            log.compact()
        for step in flow.steps:
            record_unsettled(step.stage.name, record.unsettled.get(step.stage.name, ()))
    results = FlowRows(folder.folder, flow.fingerprint, rows.keys)
    if exchange is not None:
        for _, row in progress(results.rows(), "bring files"):
            # The cache is of the machine that works on a row.
            exchange.bring(
                {name: digest for name, digest in row.get(FILES, {}).items() if not name.startswith("cache/")}
            )
    return results


@dataclass(frozen=True)
class FlowRows:
    """The rows that left a flow, on disk."""

    folder: Path
    fingerprint: str
    keys: pa.Table

    def sql(self) -> str:
        """A query for them: `position` in the list of the row that they came of, `listed` (its unit), `unit` and
        `outputs`, the row as JSON; over a table `keys`, which is `self.keys`."""
        results, finished = (
            ledger_sql(ledger_files(self.folder, name, self.fingerprint)) for name in (RESULTS, FINISHED)
        )
        return f"""SELECT keys.position, keys.unit AS listed, l.unit, l.outputs
                   FROM ({results}) l JOIN ({finished}) f ON l.input_hash = f.input_hash AND l.attempt = f.attempt
                   JOIN keys ON keys.unit = f.unit AND keys.input_hash = f.input_hash"""

    def rows(self, where: str = "true") -> Iterator[tuple[str, Row]]:
        """(listed unit, row) of each for which `where` holds ("unit = listed": the listed rows themselves), by the
        place in the list and then by unit; memory holds one batch."""
        with connection_beside(self.folder) as connection:
            connection.register("keys", self.keys)
            chosen = f"SELECT listed, outputs FROM ({self.sql()}) WHERE {where} ORDER BY position, unit"
            for batch in batches(connection.sql(chosen), rows=4096):
                for listed, outputs in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield listed, json_value(outputs)


class FlowRecord(Record):
    """Writes down what happens in a flow: the ledgers, a status per stage, and one bar over the listed rows.
    `unsettled` is what has no final outcome, by stage, and grows."""

    def __init__(
        self,
        flow: Flow,
        logs: Sequence[StageLedger],
        results: StageLedger,
        finished: StageLedger,
        unsettled: dict[str, list[Last]],
        generation: int,
    ) -> None:
        self.unsettled = unsettled
        self._print, self._logs, self._results, self._finished = flow.fingerprint, logs, results, finished
        self._generation = generation
        self._open: dict[str, tuple[str, dict[str, list[Any]]]] = {}  # unit of a listed row, and what came of it
        self._counts = [_counts(log) for log in logs]
        self._lines: dict[StageLedger, list[bytes]] = {}  # noted and not written

    @contextmanager
    def shown(self, label: str, total: int, done: int) -> Iterator[None]:
        """Context with the bar and the status of every stage."""
        with ExitStack() as stack:
            self._bar: ProgressBar[Row] = stack.enter_context(progress(total, label))
            self._bar.update(done)
            self._heartbeats = [
                stack.enter_context(StageHeartbeat(log.folder, log.stage, log.fingerprint, counts.total(), counts))
                for log, counts in zip(self._logs, self._counts, strict=True)
            ]
            yield

    def tasks(self, rows: Listed, skip: np.ndarray, records: Iterator[tuple[int, Recorded]]) -> Iterator[Task]:
        """The tasks of the listed rows that are not to be skipped, each with what is known of it and its children;
        `records` is in the order of the list."""
        ahead = next(records, None)
        for position, unit, digest, row in rows.rows(skip):
            own = []
            while ahead is not None and ahead[0] == position:
                own.append(ahead[1])
                ahead = next(records, None)
            self._open[digest] = (unit, {"unsettled": [], "products": []})
            yield Task(UNPLACED, digest, unit, "", row, recorded=tuple(own))

    def entered(self, task: Task) -> None:
        """Count a row that waits; one that is run again was counted with what was recorded."""
        if task.last is None:
            self._heartbeats[task.step].total += 1
        else:
            self._counts[task.step][task.last.state] -= 1

    def ended(self, step: int, line: bytes, last: Last, again: bool) -> None:
        """Note the row of an attempt."""
        self._lines.setdefault(self._logs[step], []).append(line)
        if not again:
            self._counts[step][last.state] += 1
        self._heartbeats[step].beat()

    def result(self, task: Task, line: bytes, last: Last, stage: str) -> None:
        """Note a row as it left."""
        self._lines.setdefault(self._results, []).append(line)
        if last.state in ("pending", "failed"):
            self._open[task.root][1]["unsettled"].append([stage, last.state, last.attempt, last.error_class])

    def products(self, task: Task, products: Sequence[tuple[str, int | None]]) -> None:
        """Note the files of a listed row, below the run folder by their place in it: the folder may be moved."""
        root = f"{self._finished.folder.parent.parent}{os.sep}"
        self._open[task.root][1]["products"] += [[path.removeprefix(root), size] for path, size in products]

    def finished(self, root: str) -> None:
        """Note that nothing is left to do of a listed row."""
        unit, of_row = self._open.pop(root)
        states = {state for _, state, _, _ in of_row["unsettled"]}
        state: State = "pending" if "pending" in states else "failed" if states else "kept"
        for stage, *last in of_row["unsettled"]:
            self.unsettled.setdefault(stage, []).append(Last(*last))
        outcome = Outcome(unit, state, outputs=of_row, attempt=self._generation)
        line = ledger_line((unit, root), FINISHED, self._print, outcome)
        self._lines.setdefault(self._finished, []).append(line)
        self._bar.update(1, ", ".join(f"{name} {count}" for name, count in sorted(self._counts[-1].items()) if count))

    def flush(self) -> None:
        """Write the noted rows, in one write each file: those of stages first, then what says that they are all."""
        lines, self._lines = self._lines, {}
        for log in sorted(lines, key=lambda log: (log is self._finished, log is self._results)):
            log.append_lines(b"".join(lines[log]))

    def watch(self, slots: Sequence[Slot]) -> None:
        """Say how many workers there are, and how many rest."""
        for number, heartbeat in enumerate(self._heartbeats):
            own = [slot for slot in slots if number in slot.steps]
            heartbeat.workers, heartbeat.resting = len(own), sum(slot.resting for slot in own)
            heartbeat.note = resting_note(own)
            heartbeat.beat()


def _list(listed: Iterable[Row], file: IO[bytes]) -> Listed:
    """Write the listed rows into a file, so that they need not be held. Raises StageError for a unit named twice."""
    seen: set[int] = set()

    def keys() -> Iterator[tuple[str, str]]:
        for row in listed:
            seen.add(hash(row["unit"]))
            data = packed(row)
            file.write(len(data).to_bytes(4, "little") + data)
            yield row["unit"], fingerprint(row)

    table = key_table(keys())
    if len(seen) < table.num_rows:  # a duplicate, or rarely a hash collision
        unit, count = Counter(table["unit"].to_pylist()).most_common(1)[0]
        if count > 1:
            raise StageError(f"The list has the unit '{unit}' {count} times; unit ids must be unique.")
    return Listed(table, file)


def _counts(log: StageLedger) -> Counter[State]:
    """What is recorded of a stage, by state."""
    sql = f"SELECT state, count(*) FROM ({ledger_sql(log.files())}) GROUP BY state"
    with connection_beside(log.folder) as connection:
        return Counter(dict(connection.execute(sql).fetchall()))


def _finished(
    log: StageLedger, keys: pa.Table, policy: RetryPolicy, exchange: Exchange | None
) -> tuple[np.ndarray, dict[str, list[Last]], int]:
    """Which listed rows are finished and may be skipped; what of these has no final outcome, by stage; and the number
    of this run, by which rows that left are told from those of earlier runs."""
    skip, unsettled = np.zeros(keys.num_rows, bool), dict[str, list[Last]]()
    rows, root = ledger_sql(log.files()), log.folder.parent.parent
    with connection_beside(log.folder) as connection:
        ((generation,),) = connection.execute(f"SELECT coalesce(max(attempt), 0) + 1 FROM ({rows})").fetchall()
        connection.register("keys", keys)
        sql = f"SELECT position, outputs FROM keys JOIN ({rows}) USING (unit, input_hash) WHERE state <> 'pending'"
        for batch in batches(connection.sql(sql), rows=4096):
            for position, outputs in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                of_row = json_value(outputs)
                lasts = [(stage, Last(*last)) for stage, *last in of_row["unsettled"]]
                # What is exchanged need not be here; it is brought when all is done.
                whole = exchange or all(is_whole(Path(root, path), size) for path, size in of_row["products"])
                skip[position] = bool(whole) and all(policy.settled(last) for _, last in lasts)
                if skip[position]:
                    for stage, last in lasts:
                        unsettled.setdefault(stage, []).append(last)
    return skip, unsettled, generation


def _recorded(
    folder: Path, logs: Sequence[StageLedger], keys: pa.Table, skip: np.ndarray
) -> Iterator[tuple[int, Recorded]]:
    """What the stages have recorded of the listed rows that are not skipped and of the rows that came of them, with the
    position in the list, in its order. Sorted out of core: all may have to be read after a change of a setting. Rows
    whose names DuckDB's JSON does not take (not UTF-8) are done again."""
    files = [log.files() for log in logs]
    if not any(files):
        return
    columns = "unit, input_hash, state, reason, message, attempt, error_class, outputs"
    rows = " UNION ALL ".join(
        f"SELECT {number} AS step, {columns} FROM ({ledger_sql(found)})" for number, found in enumerate(files) if found
    )
    sql = f"""
        WITH rows AS ({rows}), todo AS (SELECT position, unit FROM keys),
        born AS (SELECT position, unnest(TRY(json_extract_string(outputs, '$.{ROWS}[*].unit'))) AS unit
                 FROM todo JOIN rows USING (unit) WHERE contains(outputs, '"{ROWS}"')),
        wanted AS (SELECT position, unit FROM todo UNION SELECT position, unit FROM born)
        SELECT position, step, {columns} FROM wanted JOIN rows USING (unit) ORDER BY position"""
    with connection_beside(folder) as connection:
        connection.register("keys", keys.filter(pa.array(~skip)))
        for batch in batches(connection.sql(sql), rows=256):
            for row in batch.to_pylist():
                yield row["position"], recorded(row["step"], row)
