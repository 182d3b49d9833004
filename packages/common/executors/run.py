"""One stage, many units: in this process, on a pool of processes or on Ray, with the same results in the same order.

A unit whose worker dies is tried again on a fresh worker; the others never notice. Only rows travel; pixels stay in
files.
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
from common.executors.ray_cluster import SETTLE_SECONDS, RayWorker, check_ray, connect_ray, ray_room
from common.executors.retry import RetryPolicy
from common.executors.runner import Runner
from common.executors.stage import Stage, StageError
from common.executors.status import StageHeartbeat
from common.executors.workers import InProcessWorker, ProcessWorker, Shelf, Worker, WorkerKind
from common.ledger.store import STATES, Last, Ledger, Outcome, StageLedger, State, Unit, key_table
from common.progress import ProgressBar, progress

FAILED = STATES.index("failed")  # from here on a unit may be tried again


def run_stage(stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig) -> list[Outcome]:
    """Bring every unit through `stage` and return the outcomes in the order of `units`.

    Units the ledger knows as kept or rejected, or as failed for good, are not touched again; pending ones are. Every
    attempt is a durable row before the next begins. An exception in a unit, or the death of its worker, is a failed
    attempt of that unit alone. Errors: StageError when the stage itself cannot start, DiskFullError, RuntimeError when
    another run is at this stage of this ledger.
    """
    return list(stream_stage(stage, units, ledger, executor))


def stream_stage(
    stage: Stage[Any], units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig
) -> Iterator[Outcome]:
    """As `run_stage`, for outcomes that do not fit into memory together: all units are done before the first outcome
    comes, then they are read from the ledger piece by piece. In memory are the rows of the units and, for each, about
    100 bytes."""
    rows = units if isinstance(units, Sequence) else list(units)
    keys = _keys(stage, rows)
    with ledger.open(stage.name, stage.fingerprint) as log:
        states, unsettled = log.last(keys)
        for index, attempt in _lost_products(stage, rows, log, keys, states):
            # To be done again under the same attempt: nothing has failed.
            states[index], unsettled[index] = -1, Last("pending", attempt)
        tries = RetryPolicy(unsettled, executor.retry_failed, executor.retry_crashes, executor.retry)
        todo = deque(i for i in np.flatnonzero((states < 0) | (states >= FAILED)).tolist() if not tries.settled(i))
        if stage.cost:
            todo = deque(sorted(todo, key=lambda i: -stage.predicted_cost(rows[i])))
        if todo:
            counts = Counter({state: int((states == code).sum()) for code, state in enumerate(STATES)})
            counts.subtract(STATES[states[i]] for i in todo if states[i] >= 0)
            _do(stage, rows, keys["input_hash"].combine_chunks(), todo, counts, tries, log, executor)
        elif log.is_open_ended():
            with suppress(RuntimeError):  # another run is at it after all
                log.compact()
        yield from log.outcomes(keys)


def _do(
    stage: Stage[Any],
    rows: Sequence[Unit],
    hashes: pa.StringArray,
    todo: "deque[int]",
    counts: Counter[State],
    tries: RetryPolicy,
    log: StageLedger,
    config: ExecutorConfig,
) -> None:
    """Bring the units of `todo` to an end, each attempt a row of `log`; `counts` are of the others."""
    log.lock()
    bar: ProgressBar[Unit] = progress(len(rows), stage.name)
    with bar, StageHeartbeat(log.folder, stage.name, stage.fingerprint, len(rows), counts) as heartbeat:
        bar.update(len(rows) - len(todo))
        for index, outcome in _results(stage, config, rows, todo, tries, bar, heartbeat):
            outcome, again = tries.judge(index, outcome)
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
    """Position and attempt of every kept unit whose product is gone, as `Stage.product_exists` says."""
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
    if (hashes[1:] == hashes[:-1]).any():  # or, once in a while, two names of one hash
        double, count = Counter(row["unit"] for row in rows).most_common(1)[0]
        if count > 1:
            raise StageError(f"Stage '{stage.name}' got the unit '{double}' more than once; unit ids must be unique.")
    return key_table((row["unit"], stage.input_hash(row)) for row in rows)


def _results(
    stage: Stage[Any],
    config: ExecutorConfig,
    rows: Sequence[Unit],
    todo: "deque[int]",
    tries: RetryPolicy,
    bar: ProgressBar[Unit],
    heartbeat: StageHeartbeat,
) -> Iterator[tuple[int, Outcome]]:
    def watch(pause: Pause) -> None:
        all_rest = pause.resting == heartbeat.workers > 0
        rests = f"all workers rest, the first goes on in {pause.seconds:.0f} s" if all_rest else ""
        heartbeat.resting, heartbeat.note = pause.resting, rests
        heartbeat.beat()
        if rests:
            bar.update(0, rests)
        if config.kind == "ray":
            check_ray(stage, config)

    try:
        with (
            _crew(stage, config, len(todo)) as slots,
            closing(attempts(rows, todo, tries.next_attempt, slots, stage.timeout_seconds, watch)) as results,
        ):
            heartbeat.workers = len(slots)
            for result in results:
                heartbeat.resting, heartbeat.note = sum(slot.wakes > time.monotonic() for slot in slots), ""
                yield result
    except LoadError as error:
        if config.kind == "ray":
            check_ray(stage, config, patience=2 * SETTLE_SECONDS)
        raise StageError(f"Stage '{stage.name}' cannot start: {error}") from error


_kept: Shelf | None = None


@contextmanager
def kept_workers() -> Iterator[None]:
    """Let workers outlive their stage: the stages run inside share them and load their models into them one after the
    other. They end with the block, at once when it ends by an error. Settings that a stage makes for its whole process
    (threads, seeds) stay for the next: a stage that depends on one sets it."""
    global _kept
    if _kept is not None:  # an outer block keeps them
        yield
        return
    _kept = Shelf()
    try:
        yield
    finally:
        _kept.clear()
        _kept = None


@contextmanager
def _crew(stage: Stage[Any], config: ExecutorConfig, units: int) -> Iterator[list[WorkerSlot]]:
    """One loaded place per lane, or as many as the executor has room for and the units need."""
    count = len(stage.lanes) or config.workers or len(os.sched_getaffinity(0))
    if config.kind == "ray":
        connect_ray(config)
        count = ray_room(stage, config, _worker_kind(config, stage.lanes[0] if stage.lanes else ""), _kept)
    alone = config.kind == "process" and count == 1 and not stage.timeout_seconds
    slots: list[WorkerSlot] = []
    finished = False
    try:
        for lane in stage.lanes or [""] * min(count, units):
            copy = stage.in_lane(lane) if lane else stage
            job = partial(Runner, copy, config.gpus_per_worker if config.kind == "ray" else 0.0)
            hire = InProcessWorker if alone else partial(_hire, _worker_kind(config, lane))
            slots.append(open_slot(hire, job, lane))
        yield slots
        finished = True
    finally:
        for slot in slots:
            if finished and _kept and not alone:
                _kept.put(_worker_kind(config, slot.lane), slot.worker)
            else:
                slot.worker.stop()


def _worker_kind(config: ExecutorConfig, lane: str) -> WorkerKind:
    if config.kind == "process":
        return "process", 0.0, 0.0, ""
    # A lane waits for the network most of the time; it needs its place, not a core.
    return "ray", 0.0 if lane else config.cpus_per_worker, config.gpus_per_worker, lane


def _hire(kind: WorkerKind) -> Worker:
    kept = _kept.take(kind) if _kept else None
    if kept is not None:
        return kept
    return ProcessWorker() if kind[0] == "process" else RayWorker(*kind[1:])
