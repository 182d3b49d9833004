"""Execution of stages and flows: in this process, on worker processes or on Ray, with equal results.

A unit whose worker crashes is retried on a fresh worker; other units are not affected. Workers receive and return rows
only; pixels stay in files. This process holds the rows that are in flight, not those that are done.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from common.errors import BusyError
from common.executors.config import ExecutorConfig
from common.executors.dispatch import Dispatcher, Record, Slot
from common.executors.exchange import Exchange
from common.executors.flow import UNPLACED, Flow, Step, Task, packed
from common.executors.host import Host
from common.executors.ray_cluster import (
    SETTLE_SECONDS,
    RayWorker,
    WorkerKind,
    check_ray,
    ray_offers,
    ray_room,
)
from common.executors.ray_connect import connect_ray
from common.executors.retry import RetryPolicy, record_unsettled
from common.executors.stage import Stage, StageError, WorkersLostError
from common.executors.status import StageHeartbeat
from common.executors.workers import InProcessWorker, ProcessWorker, Worker
from common.ledger.store import STATES, Last, Ledger, Outcome, StageLedger, State, Unit, key_table
from common.process.signals import draining
from common.progress import ProgressBar, progress

FAILED = STATES.index("failed")  # units with this state or a later one may run again
GROW_SECONDS = 5.0  # between two looks whether one worker more may be of use


def run_stage(stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig) -> list[Outcome]:
    """Run every unit through `stage` and return the outcomes in the order of `units`.

    Units that the ledger has as kept or rejected, or as failed with their attempts exhausted, are skipped; pending ones
    run again. An exception in a unit, or the crash of its worker, is a failed attempt of that unit alone. Raises
    StageError when the stage itself cannot start, DiskFullError, and RuntimeError when another run is executing this
    stage on this ledger.
    """
    return list(stream_stage(stage, units, ledger, executor))


def stream_stage(
    stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig
) -> Iterator[Outcome]:
    """`run_stage` for outcomes that do not fit into memory together: once all units have run, they are read from the
    ledger in batches. Memory holds the rows of the units and about 100 bytes more for each."""
    rows = units if isinstance(units, Sequence) else list(units)
    keys = _keys(stage, rows)
    policy = RetryPolicy.of(executor)
    with ledger.open(stage.name, stage.fingerprint) as log:
        with suppress(BusyError):  # another run is executing the stage: said below, if there is anything to run
            log.take_over()
        states, last = log.last(keys)
        for index, attempt in _lost_products(stage, rows, log, keys, states):
            # Runs again under the same attempt number: nothing has failed.
            states[index], last[index] = -1, Last("kept", attempt)
        todo = [
            i
            for i in np.flatnonzero((states < 0) | (states >= FAILED)).tolist()
            if states[i] < 0 or not policy.settled(last[i])
        ]
        if stage.cost:
            todo.sort(key=lambda i: -stage.predicted_cost(rows[i]))
        again = set(todo)
        counts = Counter(STATES[code] for i, code in enumerate(states.tolist()) if code >= 0 and i not in again)
        if todo:
            hashes = keys["input_hash"].combine_chunks()
            tasks = (_task(rows[i], hashes[i].as_py(), last.get(i), policy) for i in todo)
            flow = Flow((Step(stage),), keeps_rows=False)
            record = StageRecord(stage, log, counts, len(rows), len(rows) - len(todo))
            with record:
                run_tasks(flow, executor, policy, record, tasks, log.folder, len(todo))
            log.compact()
        elif log.is_open_ended():
            with suppress(RuntimeError):  # another run is executing the stage
                log.lock()
                if any(log.folder.glob(f"{stage.name}-{stage.fingerprint}.status.*")):
                    # That of the killed run says that it is running.
                    with StageHeartbeat(log.folder, stage.name, stage.fingerprint, len(rows), counts):
                        pass
                log.compact()
        record_unsettled(stage.name, log.last(keys)[1].values())
        yield from log.outcomes(keys)


class StageRecord(Record):
    """Writes the ledger's rows of one stage, its status and its progress bar. A context for the time of the run."""

    def __init__(self, stage: Stage[Any], log: StageLedger, counts: Counter[State], total: int, done: int) -> None:
        self._name, self._log, self._counts, self._done = stage.name, log, counts, done
        self._bar: ProgressBar[Unit] = progress(total, stage.name)
        self._heartbeat = StageHeartbeat(log.folder, stage.name, stage.fingerprint, total, counts)
        self._stack, self._lines = ExitStack(), list[bytes]()

    def __enter__(self) -> "StageRecord":
        self._log.lock()
        self._stack.enter_context(self._bar)
        self._stack.enter_context(self._heartbeat)
        self._bar.update(self._done)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def ended(self, step: int, line: bytes, last: Last, again: bool) -> None:
        """Note the row of an attempt."""
        self._lines.append(line)
        if not again:
            self._counts[last.state] += 1
            counted = sorted(self._counts.items())
            self._bar.update(1, ", ".join(f"{state} {count}" for state, count in counted if count))
        self._heartbeat.note = ""
        self._heartbeat.beat()

    def flush(self) -> None:
        """Write the noted rows, in one write."""
        lines, self._lines = self._lines, []
        if lines:
            self._log.append_lines(b"".join(lines))

    def watch(self, slots: Sequence[Slot]) -> None:
        """Say where all workers rest."""
        self._heartbeat.workers, self._heartbeat.resting = len(slots), sum(slot.resting for slot in slots)
        self._heartbeat.note = resting_note(slots)
        self._heartbeat.beat()
        if self._heartbeat.note:
            self._bar.update(0, self._heartbeat.note)


def resting_note(slots: Sequence[Slot]) -> str:
    """What to say where all workers rest, "" where one does not."""
    if not slots or not all(slot.resting for slot in slots):
        return ""
    return f"all workers paused, first resumes in {min(slot.resumes for slot in slots) - time.monotonic():.0f} s"


def run_tasks(
    flow: Flow,
    config: ExecutorConfig,
    policy: RetryPolicy,
    record: Record,
    tasks: Iterable[Task],
    journals: Path,
    most: int = 2**62,
    generation: int = 1,
    at_rest: Callable[[], object] | None = None,
) -> None:
    """Run the tasks of a flow on as many workers as the executor has, at most `most` beside lanes. `journals` is the
    folder of the ledger, in which workers note what they have done.

    A signal to stop (SIGTERM and the like) ends it as soon as what is in hand is done, within the executor's
    `stop_seconds`. Raises Stopped then, StageError where a step cannot start, DiskFullError.
    """
    names = ", ".join(f"'{step.stage.name}'" for step in flow.steps)
    if config.kind == "ray":
        connect_ray(config)
    pools = _pools(flow, config)
    counts = [_count(pool, config) for pool in pools]
    alone = sum(counts) == 1 and not any(step.stage.timeout_seconds for step in flow.steps)
    slots: list[Slot] = []
    begun, grown = 0, time.monotonic()  # workers so far, and when the last of them was added

    def create(number: int) -> Worker:
        nonlocal begun
        begun += 1
        gpus, exchange = pools[number].kind.gpus, exchange_of(config, journals.parent) if flow.keeps_rows else None
        host = Host(flow, policy, pools[number].lane, gpus, generation, journals, begun, exchange)
        if config.kind == "ray":
            return RayWorker(pools[number].kind, host)
        return InProcessWorker(host) if alone else ProcessWorker(host)

    def watch() -> None:
        nonlocal grown
        record.watch(slots)
        if config.kind == "ray":
            check_ray(names, config)
            if not config.workers and time.monotonic() - grown > GROW_SECONDS:
                grown = time.monotonic()
                for number, pool in enumerate(pools):
                    own = [slot for slot in slots if slot.steps is pool.steps]
                    if not pool.lane and len(slots) < most and all(slot.started for slot in own):
                        dispatcher.add(Slot(partial(create, number), pool.steps))

    try:
        for number, pool in enumerate(pools):
            slots += [Slot(partial(create, number), pool.steps, pool.lane) for _ in range(min(counts[number], most))]
        dispatcher = Dispatcher(flow, policy, slots, record, iter(tasks), watch, generation, at_rest)
        with draining(partial(dispatcher.stop, config.stop_seconds), config.stop_seconds):
            dispatcher.run()
    except WorkersLostError:
        if config.kind == "ray":
            check_ray(names, config, patience=2 * SETTLE_SECONDS)
        raise
    finally:
        for slot in slots:
            if slot.worker is not None:
                slot.worker.stop()


def exchange_of(config: ExecutorConfig, root: Path) -> Exchange | None:
    """The exchange of a run, where it has one."""
    return Exchange(root, config.exchange) if config.exchange else None


class _Pool(NamedTuple):
    """Workers of one kind, and the steps that they run."""

    kind: WorkerKind
    steps: list[int]
    lane: str = ""


def _pools(flow: Flow, config: ExecutorConfig) -> list[_Pool]:
    """The workers that a flow needs: one of each lane, and of each pool of its stages where that has resources of its
    own; without, its steps are done by the workers of the pool "cpu"."""
    lanes: dict[str, list[int]] = {}
    by_pool: dict[str, list[int]] = {}
    for number, step in enumerate(flow.steps):
        stage = step.stage
        if len(set(stage.lanes)) < len(stage.lanes):
            raise StageError(f"Stage '{stage.name}' has the lanes {list(stage.lanes)}; every lane needs its own name.")
        for lane in stage.lanes:
            lanes.setdefault(lane, []).append(number)
        if not stage.lanes:
            has_own = config.kind == "ray" and (
                config.gpus_per_worker if stage.pool == "gpu" else _offered(f"pool:{stage.pool}", config)
            )
            by_pool.setdefault(stage.pool if has_own else "cpu", []).append(number)
    if config.kind == "process" and config.workers == 1 and len(lanes) <= 1:  # this process does everything
        everything = [UNPLACED, *range(len(flow.steps))]
        return [_Pool(WorkerKind(config.cpus_per_worker, workers=1), everything, next(iter(lanes), ""))]
    # A lane waits for the network most of the time, so it reserves no core; nor does what reserves a GPU or the like:
    # it would wait forever for the core of its machine, if a worker of the pool "cpu" has that.
    pools = [_Pool(WorkerKind(0.0, resources=_offered(f"lane:{lane}", config)), s, lane) for lane, s in lanes.items()]
    for name, steps in sorted(by_pool.items(), key=lambda item: item[0] == "cpu"):
        own = _offered(f"pool:{name}", config) if name not in ("cpu", "gpu") else ()
        cpus, gpus = config.cpus_per_worker if name == "cpu" else 0.0, config.gpus_per_worker if name == "gpu" else 0.0
        pools.append(_Pool(WorkerKind(cpus, gpus, own, config.workers), steps))
    pools[-1].steps.insert(0, UNPLACED)  # "cpu", if there is one
    return pools


def _offered(resource: str, config: ExecutorConfig) -> tuple[tuple[str, float], ...]:
    return ((resource, 1.0),) if config.kind == "ray" and ray_offers(resource) else ()


def _count(pool: _Pool, config: ExecutorConfig) -> int:
    if pool.lane:
        return 1
    if config.kind == "ray":
        return ray_room(pool.kind, config)
    return config.workers or len(os.sched_getaffinity(0))


def _task(row: Unit, digest: str, last: Last | None, policy: RetryPolicy) -> Task:
    return Task(0, row["unit"], row["unit"], digest, packed(row), last, policy.spent(last))


def _lost_products(
    stage: Stage[Any], rows: Sequence[Unit], log: StageLedger, keys: pa.Table, states: np.ndarray
) -> list[tuple[int, int]]:
    """Position and attempt of every kept unit for which `Stage.product_exists` is false."""
    kept = np.flatnonzero(states == STATES.index("kept"))
    asks = (type(stage).product_exists, type(stage).products) != (Stage.product_exists, Stage.products)
    if not asks or not len(kept):
        return []
    outcomes = zip(kept.tolist(), log.outcomes(keys.take(pa.array(kept))), strict=True)
    return [(index, outcome.attempt) for index, outcome in outcomes if not stage.product_exists(rows[index], outcome)]


def _keys(stage: Stage[Any], rows: Sequence[Unit]) -> pa.Table:
    hashes = np.fromiter((hash(row["unit"]) for row in rows), np.int64, len(rows))
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():  # a duplicate, or rarely a hash collision
        double, count = Counter(row["unit"] for row in rows).most_common(1)[0]
        if count > 1:
            raise StageError(f"Stage '{stage.name}' got the unit '{double}' more than once; unit ids must be unique.")
    return key_table((row["unit"], stage.input_hash(row)) for row in rows)
