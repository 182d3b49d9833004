"""Stage execution: runs a stage over many units in this process, on a process pool or on Ray, with equal results.

A unit whose worker crashes is retried on a fresh worker; other units are not affected. Workers receive and return rows
only; pixels stay in files.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from common.executors.config import ExecutorConfig
from common.executors.dispatch import LoadError, Pause, WorkerSlot, attempts, open_slot
from common.executors.ray_cluster import SETTLE_SECONDS, RayWorker, check_ray, ray_capacity
from common.executors.ray_connect import connect_ray
from common.executors.retry import RetryPolicy, record_unsettled
from common.executors.runner import Runner
from common.executors.stage import Stage, StageError
from common.executors.status import StageHeartbeat
from common.executors.workers import IdleWorkers, InProcessWorker, ProcessWorker, Worker, WorkerKind
from common.ledger.store import STATES, Last, Ledger, Outcome, StageLedger, State, Unit, key_table
from common.progress import ProgressBar, progress

FAILED = STATES.index("failed")  # units with this state or a later one may run again


def run_stage(stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig) -> list[Outcome]:
    """Run every unit through `stage` and return the outcomes in the order of `units`.

    Units that the ledger has as kept or rejected, or as failed with their attempts exhausted, are skipped; pending ones
    run again. Every attempt is a durable row before the next begins. An exception in a unit, or the crash of its
    worker, is a failed attempt of that unit alone. Raises StageError when the stage itself cannot start,
    DiskFullError, and RuntimeError when another run is executing this stage on this ledger.
    """
    return list(stream_stage(stage, units, ledger, executor))


def stream_stage(
    stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig
) -> Iterator[Outcome]:
    """`run_stage` for outcomes that do not fit into memory together: once all units have run, they are read from the
    ledger in batches. Memory holds the rows of the units and about 100 bytes more for each."""
    rows = units if isinstance(units, Sequence) else list(units)
    keys = _keys(stage, rows)
    with ledger.open(stage.name, stage.fingerprint) as log:
        states, unsettled = log.last(keys)
        for index, attempt in _lost_products(stage, rows, log, keys, states):
            # Runs again under the same attempt number: nothing has failed.
            states[index], unsettled[index] = -1, Last("pending", attempt)
        policy = RetryPolicy(unsettled, executor.retry_failed, executor.retry_crashes, executor.retry)
        todo = deque(i for i in np.flatnonzero((states < 0) | (states >= FAILED)).tolist() if not policy.settled(i))
        if stage.cost:
            todo = deque(sorted(todo, key=lambda i: -stage.predicted_cost(rows[i])))
        counts = Counter({state: int((states == code).sum()) for code, state in enumerate(STATES)})
        if todo:
            counts.subtract(STATES[states[i]] for i in todo if states[i] >= 0)
            _run_units(stage, rows, keys["input_hash"].combine_chunks(), todo, counts, policy, log, executor)
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


def _run_units(
    stage: Stage[Any],
    rows: Sequence[Unit],
    hashes: pa.StringArray,
    todo: "deque[int]",
    counts: Counter[State],
    policy: RetryPolicy,
    log: StageLedger,
    config: ExecutorConfig,
) -> None:
    """Run the units of `todo` until none is left, each attempt a row of `log`; `counts` counts the other units."""
    log.lock()
    bar: ProgressBar[Unit] = progress(len(rows), stage.name)
    with bar, StageHeartbeat(log.folder, stage.name, stage.fingerprint, len(rows), counts) as heartbeat:
        bar.update(len(rows) - len(todo))
        for index, outcome in _results(stage, config, rows, todo, policy, bar, heartbeat):
            outcome, again = policy.judge(index, outcome)
            log.append((rows[index]["unit"], hashes[index].as_py()), outcome)
            if again:
                todo.append(index)
            else:
                counts[outcome.state] += 1
                bar.update(1, ", ".join(f"{state} {count}" for state, count in sorted(counts.items()) if count))
            heartbeat.beat()
    log.compact()


def _lost_products(
    stage: Stage[Any], rows: Sequence[Unit], log: StageLedger, keys: pa.Table, states: np.ndarray
) -> list[tuple[int, int]]:
    """Position and attempt of every kept unit for which `Stage.product_exists` is false."""
    kept = np.flatnonzero(states == STATES.index("kept"))
    if type(stage).product_exists is Stage.product_exists or not len(kept):
        return []
    outcomes = zip(kept.tolist(), log.outcomes(keys.take(pa.array(kept))), strict=True)
    return [(index, outcome.attempt) for index, outcome in outcomes if not stage.product_exists(rows[index], outcome)]


def _keys(stage: Stage[Any], rows: Sequence[Unit]) -> pa.Table:
    if len(set(stage.lanes)) < len(stage.lanes):
        raise StageError(f"Stage '{stage.name}' has the lanes {list(stage.lanes)}; every lane needs its own name.")
    hashes = np.fromiter((hash(row["unit"]) for row in rows), np.int64, len(rows))
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():  # a duplicate, or rarely a hash collision
        double, count = Counter(row["unit"] for row in rows).most_common(1)[0]
        if count > 1:
            raise StageError(f"Stage '{stage.name}' got the unit '{double}' more than once; unit ids must be unique.")
    return key_table((row["unit"], stage.input_hash(row)) for row in rows)


def _results(
    stage: Stage[Any],
    config: ExecutorConfig,
    rows: Sequence[Unit],
    todo: "deque[int]",
    policy: RetryPolicy,
    bar: ProgressBar[Unit],
    heartbeat: StageHeartbeat,
) -> Iterator[tuple[int, Outcome]]:
    def watch(pause: Pause) -> None:
        all_paused = pause.resting == heartbeat.workers > 0
        note = f"all workers paused, first resumes in {pause.seconds:.0f} s" if all_paused else ""
        heartbeat.resting, heartbeat.note = pause.resting, note
        heartbeat.beat()
        if note:
            bar.update(0, note)
        if config.kind == "ray":
            check_ray(stage, config)

    try:
        with (
            _worker_slots(stage, config, len(todo)) as slots,
            closing(attempts(rows, todo, policy.next_attempt, slots, stage.timeout_seconds, watch)) as results,
        ):
            heartbeat.workers = len(slots)
            for result in results:
                heartbeat.resting, heartbeat.note = sum(slot.resumes > time.monotonic() for slot in slots), ""
                yield result
    except LoadError as error:
        if config.kind == "ray":
            check_ray(stage, config, patience=2 * SETTLE_SECONDS)
        raise StageError(f"Stage '{stage.name}' cannot start: {error}") from error


_idle: IdleWorkers | None = None


@contextmanager
def shared_workers() -> Iterator[None]:
    """Context in which stages reuse workers: each stage loads its models into the workers of the one before.

    The workers stop at the end of the block. Process-wide settings of a stage (threads, seeds) persist into the next:
    a stage that depends on one must set it.
    """
    global _idle
    if _idle is not None:  # an outer block owns the workers
        yield
        return
    _idle = IdleWorkers()
    try:
        yield
    finally:
        _idle.clear()
        _idle = None


@contextmanager
def _worker_slots(stage: Stage[Any], config: ExecutorConfig, units: int) -> Iterator[list[WorkerSlot]]:
    """One slot per lane, or as many as the executor has capacity for and the units need."""
    count = len(stage.lanes) or config.workers or len(os.sched_getaffinity(0))
    if config.kind == "ray":
        connect_ray(config)
        count = ray_capacity(stage, config, _worker_kind(config, stage.lanes[0] if stage.lanes else ""), _idle)
    in_process = config.kind == "process" and count == 1 and not stage.timeout_seconds
    slots: list[WorkerSlot] = []
    finished = False
    try:
        for lane in stage.lanes or [""] * min(count, units):
            copy = stage.in_lane(lane) if lane else stage
            job = partial(Runner, copy, config.gpus_per_worker if config.kind == "ray" else 0.0)
            create_worker = InProcessWorker if in_process else partial(_create_worker, _worker_kind(config, lane))
            slots.append(open_slot(create_worker, job, lane))
        yield slots
        finished = True
    finally:
        for slot in slots:
            if finished and _idle and not in_process:
                _idle.put(_worker_kind(config, slot.lane), slot.worker)
            else:
                slot.worker.stop()


def _worker_kind(config: ExecutorConfig, lane: str) -> WorkerKind:
    if config.kind == "process":
        return "process", 0.0, 0.0, ""
    # A lane waits for the network most of the time, so it reserves no core.
    return "ray", 0.0 if lane else config.cpus_per_worker, config.gpus_per_worker, lane


def _create_worker(kind: WorkerKind) -> Worker:
    idle = _idle.take(kind) if _idle else None
    if idle is not None:
        return idle
    return ProcessWorker() if kind[0] == "process" else RayWorker(*kind[1:])
