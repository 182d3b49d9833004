"""Dispatcher: hands units from a queue to worker slots and yields their outcomes as they end.

A worker that crashes or exceeds the time limit is replaced, and only its unit is lost. A slot whose unit asks for a
pause takes no unit for that time while the others go on.
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
from common.process.signals import STOP_SIGNALS

GROUP_SECONDS = 0.5  # between the signal to a worker and the same one to this process
TICK_SECONDS = 1.0  # time without any result after which `watch` is called


class LoadError(UserError, RuntimeError):
    """A worker crashed while loading its job, before any worker had finished a unit."""


@dataclass
class WorkerSlot:
    """A slot for one worker at a time, with the unit that it runs. `lane` is "" or the lane that its job serves."""

    lane: str
    create_worker: Callable[[], Worker]
    job: Callable[[], WorkerTask]
    worker: Worker
    loading: "Future[None]"
    running: "Future[Outcome] | None" = None
    index: int = -1
    started: float = 0.0  # monotonic time at which the unit started
    resumes: float = 0.0  # monotonic time from which the slot takes units again


@dataclass(frozen=True)
class Pause:
    """Argument of `watch`: number of busy and of paused slots, and the seconds until the first paused one resumes."""

    busy: int
    resting: int
    seconds: float


def open_slot(create_worker: Callable[[], Worker], job: Callable[[], WorkerTask], lane: str = "") -> WorkerSlot:
    """A slot with a worker that has started to load. A reused worker that died while it was idle is replaced."""
    worker = create_worker()
    while True:
        try:
            return WorkerSlot(lane, create_worker, job, worker, worker.load(job()))
        except worker.death:
            worker.stop()
            worker = create_worker()


def fill(slot: WorkerSlot) -> None:
    """Replace the worker of a slot, which died or has to be stopped."""
    slot.worker.stop()
    fresh = open_slot(slot.create_worker, slot.job, slot.lane)
    slot.worker, slot.loading, slot.running = fresh.worker, fresh.loading, None


def attempts(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    slots: Sequence[WorkerSlot],
    timeout_seconds: float = 0.0,
    watch: Callable[[Pause], None] = lambda pause: None,
) -> Generator[tuple[int, Outcome], None, None]:
    """Run the units at the positions in `todo`, which the caller may extend between two results; yields position and
    outcome of each attempt as it ends.

    `watch` is called when nothing ends for a while and when a worker has crashed. Raises LoadError, whatever `watch`
    raises, and any error of a worker that is not its crash.
    """
    ended: SimpleQueue[tuple[WorkerSlot, Future[Any]]] = SimpleQueue()  # also the ends of loading
    proven = False  # whether any worker has finished a unit
    for slot in slots:
        _watch_loading(slot, ended)
    while todo or any(slot.running for slot in slots):
        _submit_units(rows, todo, next_attempt, slots, ended, proven)
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
            continue  # a job has loaded, or the future belongs to a worker that was stopped meanwhile
        if isinstance(future.exception(), slot.worker.death):
            watch(
                _pause(slots)
            )  # raises when the whole cluster is gone: then the crash is not counted against the unit
        outcome = _result(slot, future)
        index, slot.running, proven = slot.index, None, proven or outcome is not None
        if outcome is None:
            why = _death_reason(slot)
            _refill(slot, ended)
            outcome = _lost(rows[index], next_attempt(index), DIED, f"it {why}.")
        elif outcome.state == "pending":
            slot.resumes = time.monotonic() + float(outcome.outputs.get(PAUSE, 0.0))
        yield index, outcome


def _watch_loading(slot: WorkerSlot, ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]") -> None:
    slot.loading.add_done_callback(lambda future: ended.put((slot, future)))


def _refill(slot: WorkerSlot, ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]") -> None:
    fill(slot)
    _watch_loading(slot, ended)


def _submit_units(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    slots: Sequence[WorkerSlot],
    ended: "SimpleQueue[tuple[WorkerSlot, Future[Any]]]",
    proven: bool,
) -> None:
    """Submit units to idle slots that have loaded, so that a worker that dies later has crashed on its unit."""
    now = time.monotonic()
    for slot in slots:
        if slot.running is not None or slot.resumes > now or not todo or not slot.loading.done():
            continue
        if slot.loading.exception() is not None:
            if not proven:
                raise LoadError(f"its worker died loading its models: it {_death_reason(slot)}.")
            _refill(slot, ended)
            continue
        slot.index = todo.popleft()
        try:
            running = slot.worker.submit(rows[slot.index], next_attempt(slot.index))
        except slot.worker.death:  # it died while idle, which does not count against the unit
            todo.appendleft(slot.index)
            _refill(slot, ended)
            continue
        slot.running, slot.started = running, now
        running.add_done_callback(lambda future, slot=slot: ended.put((slot, future)))  # type: ignore[misc]


def _death_reason(slot: WorkerSlot) -> str:
    # A signal to the whole process group or control group reaches the workers as well. This process's own may come a
    # moment later, and then ends it here, before the crash is counted against the unit.
    reason = slot.worker.death_reason()
    if any(reason.endswith(number.name) for number in STOP_SIGNALS):
        time.sleep(GROUP_SECONDS)
    return reason


def _result(slot: WorkerSlot, future: "Future[Outcome]") -> Outcome | None:
    """The outcome, or None when the unit crashed its worker. Raises errors that concern more than this unit."""
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, slot.worker.death):
        raise getattr(error, "cause", error)  # Ray wraps the original error
    return None


def _overdue(slots: Sequence[WorkerSlot], timeout_seconds: float) -> list[WorkerSlot]:
    if not timeout_seconds:
        return []
    now = time.monotonic()
    return [slot for slot in slots if slot.running and now - slot.started > timeout_seconds]


def _quiet_seconds(slots: Sequence[WorkerSlot], todo: "deque[int]") -> float:
    now = time.monotonic()
    resuming = [slot.resumes - now for slot in slots if slot.running is None and slot.resumes > now] if todo else []
    return max(0.0, min([TICK_SECONDS, *resuming]))


def _pause(slots: Sequence[WorkerSlot]) -> Pause:
    now = time.monotonic()
    resuming = [slot.resumes - now for slot in slots if slot.running is None and slot.resumes > now]
    return Pause(sum(slot.running is not None for slot in slots), len(resuming), min(resuming, default=0.0))


def _lost(unit: Unit, attempt: int, error_class: str, why: str) -> Outcome:
    message = f"The worker process was lost on this unit: {why}"
    return Outcome(
        unit["unit"], "failed", message=message, error_class=error_class, attempt=attempt, host=socket.gethostname()
    )
