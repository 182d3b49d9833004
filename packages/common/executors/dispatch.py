"""Who does which unit when: the loop between a queue of units and the places where they are done.

A place that dies or runs over its time is filled again and its unit alone is lost; one told to pause rests while the
others go on.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from common.errors import UserError
from common.executors.workers import Worker, WorkerTask
from common.ledger.store import DIED, PAUSE, TIMED_OUT, Outcome, Unit

TICK_SECONDS = 1.0  # how long nothing may happen before the watcher is told so


class LoadError(UserError, RuntimeError):
    """A worker died loading its job before any worker had done a unit."""


@dataclass
class WorkerSlot:
    """Where one worker at a time works. `lane` is "" or the name the job was made with."""

    lane: str
    hire: Callable[[], Worker]
    job: Callable[[], WorkerTask]
    worker: Worker
    loading: "Future[None]"
    running: "Future[Outcome] | None" = None
    index: int = -1
    begun: float = 0.0  # monotonic time at which the unit began
    wakes: float = 0.0  # monotonic time at which it takes units again


@dataclass(frozen=True)
class Pause:
    """What a watcher is told in quiet moments: how many places rest, and when the first takes units again."""

    busy: int
    resting: int
    seconds: float


def open_slot(hire: Callable[[], Worker], job: Callable[[], WorkerTask], lane: str = "") -> WorkerSlot:
    """A place with a worker that has begun to load. A kept worker that died unseen is replaced."""
    worker = hire()
    while True:
        try:
            return WorkerSlot(lane, hire, job, worker, worker.load(job()))
        except worker.death:
            worker.stop()
            worker = hire()


def fill(slot: WorkerSlot) -> None:
    """Put a fresh worker where one died or has to be stopped."""
    slot.worker.stop()
    fresh = open_slot(slot.hire, slot.job, slot.lane)
    slot.worker, slot.loading, slot.running = fresh.worker, fresh.loading, None


def attempts(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    slots: Sequence[WorkerSlot],
    timeout_seconds: float = 0.0,
    watch: Callable[[Pause], None] = lambda pause: None,
) -> Generator[tuple[int, Outcome], None, None]:
    """Attempt each row named in `todo`, which the caller may extend between two results; results come as they end.

    `watch` is called when nothing ends for a while and when a worker has died. Errors: LoadError; what `watch` raises;
    whatever a worker raises that is not its death.
    """
    ended: SimpleQueue[tuple[WorkerSlot, Future[Any]]] = SimpleQueue()  # also jobs that have loaded
    proven = False  # some worker has done some unit
    for slot in slots:
        _watch_loading(slot, ended)
    while todo or any(slot.running for slot in slots):
        _hand_out(rows, todo, next_attempt, slots, ended, proven)
        for slot in _overdue(slots, timeout_seconds):
            index = slot.index
            _refill(slot, ended)
            yield index, _lost(rows[index], next_attempt(index), TIMED_OUT, f"over {timeout_seconds:g} s; stopped.")
        try:
            slot, future = ended.get(timeout=TICK_SECONDS if timeout_seconds else _quiet_seconds(slots, todo))
        except Empty:
            watch(_pause(slots))
            continue
        if future is not slot.running:
            continue  # a job has loaded, or it is of a worker that was stopped meanwhile
        if isinstance(future.exception(), slot.worker.death):
            watch(_pause(slots))  # who knows that more than a worker is gone says so, before the unit is blamed
        outcome = _result(slot, future)
        index, slot.running, proven = slot.index, None, proven or outcome is not None
        if outcome is None:
            _refill(slot, ended)
            outcome = _lost(rows[index], next_attempt(index), DIED, "killed, out of memory, or a crash.")
        elif outcome.state == "pending":
            slot.wakes = time.monotonic() + float(outcome.outputs.get(PAUSE, 0.0))
        yield index, outcome


def _watch_loading(slot: WorkerSlot, ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]") -> None:
    slot.loading.add_done_callback(lambda future: ended.put((slot, future)))


def _refill(slot: WorkerSlot, ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]") -> None:
    fill(slot)
    _watch_loading(slot, ended)


def _hand_out(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    slots: Sequence[WorkerSlot],
    ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]",
    proven: bool,
) -> None:
    """Give units to places that have loaded and do nothing: a worker that dies later has died on its unit."""
    now = time.monotonic()
    for slot in slots:
        if slot.running is not None or slot.wakes > now or not todo or not slot.loading.done():
            continue
        if slot.loading.exception() is not None:
            if not proven:
                raise LoadError("its worker died loading its models; is memory enough?")
            _refill(slot, ended)
            continue
        slot.index = todo.popleft()
        try:
            running = slot.worker.submit(rows[slot.index], next_attempt(slot.index))
        except slot.worker.death:  # it died idle: no unit's fault
            todo.appendleft(slot.index)
            _refill(slot, ended)
            continue
        slot.running, slot.begun = running, now
        running.add_done_callback(lambda future, slot=slot: ended.put((slot, future)))  # type: ignore[misc]


def _result(slot: WorkerSlot, future: "Future[Outcome]") -> Outcome | None:
    """The outcome, or None when the unit took its worker along; raises what is wrong with more than the unit."""
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, slot.worker.death):
        raise getattr(error, "cause", error)  # Ray wraps what was raised
    return None


def _overdue(slots: Sequence[WorkerSlot], timeout_seconds: float) -> list[WorkerSlot]:
    if not timeout_seconds:
        return []
    now = time.monotonic()
    return [slot for slot in slots if slot.running and now - slot.begun > timeout_seconds]


def _quiet_seconds(slots: Sequence[WorkerSlot], todo: "deque[int]") -> float:
    now = time.monotonic()
    waking = [slot.wakes - now for slot in slots if slot.running is None and slot.wakes > now] if todo else []
    return max(0.0, min([TICK_SECONDS, *waking]))


def _pause(slots: Sequence[WorkerSlot]) -> Pause:
    now = time.monotonic()
    waking = [slot.wakes - now for slot in slots if slot.running is None and slot.wakes > now]
    return Pause(sum(slot.running is not None for slot in slots), len(waking), min(waking, default=0.0))


def _lost(unit: Unit, attempt: int, error_class: str, why: str) -> Outcome:
    message = f"The worker process was lost on this unit: {why}"
    return Outcome(
        unit["unit"], "failed", message=message, error_class=error_class, attempt=attempt, host=socket.gethostname()
    )
