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

from common.executors.workers import Job, Unit, Worker
from common.ledger.store import Outcome

TICK_SECONDS = 1.0  # how long nothing may happen before the watcher is told so
PAUSE = "pause_seconds"  # key of a pending outcome's outputs
DIED, TIMED_OUT = "WorkerDied", "TimedOut"  # error classes


class LoadError(RuntimeError):
    """A worker died loading its job before any worker had done a unit."""


@dataclass
class Place:
    """Where one worker at a time works. `lane` is "" or the name the job was made with."""

    lane: str
    hire: Callable[[], Worker]
    job: Callable[[], Job]
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


def open_place(hire: Callable[[], Worker], job: Callable[[], Job], lane: str = "") -> Place:
    """A place with a worker that has begun to load. A kept worker that died unseen is replaced."""
    worker = hire()
    while True:
        try:
            return Place(lane, hire, job, worker, worker.load(job()))
        except worker.death:
            worker.stop()
            worker = hire()


def fill(place: Place) -> None:
    """Put a fresh worker where one died or has to be stopped."""
    place.worker.stop()
    fresh = open_place(place.hire, place.job, place.lane)
    place.worker, place.loading, place.running = fresh.worker, fresh.loading, None


def attempts(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    places: Sequence[Place],
    timeout_seconds: float = 0.0,
    watch: Callable[[Pause], None] = lambda pause: None,
) -> Generator[tuple[int, Outcome], None, None]:
    """Attempt each row named in `todo`, which the caller may extend between two results; results come as they end.

    `watch` is called when nothing ends for a while and when a worker has died. Errors: LoadError; what `watch` raises;
    whatever a worker raises that is not its death.
    """
    ended: SimpleQueue[tuple[Place, Future[Any]]] = SimpleQueue()  # also jobs that have loaded
    proven = False  # some worker has done some unit
    for place in places:
        _watch_loading(place, ended)
    while todo or any(place.running for place in places):
        _hand_out(rows, todo, next_attempt, places, ended, proven)
        for place in _overdue(places, timeout_seconds):
            index = place.index
            _refill(place, ended)
            yield index, _lost(rows[index], next_attempt(index), TIMED_OUT, f"over {timeout_seconds:g} s; stopped.")
        try:
            place, future = ended.get(timeout=TICK_SECONDS if timeout_seconds else _quiet_seconds(places, todo))
        except Empty:
            watch(_pause(places))
            continue
        if future is not place.running:
            continue  # a job has loaded, or it is of a worker that was stopped meanwhile
        if isinstance(future.exception(), place.worker.death):
            watch(_pause(places))  # who knows that more than a worker is gone says so, before the unit is blamed
        outcome = _result(place, future)
        index, place.running, proven = place.index, None, proven or outcome is not None
        if outcome is None:
            _refill(place, ended)
            outcome = _lost(rows[index], next_attempt(index), DIED, "killed, out of memory, or a crash.")
        elif outcome.state == "pending":
            place.wakes = time.monotonic() + float(outcome.outputs.get(PAUSE, 0.0))
        yield index, outcome


def _watch_loading(place: Place, ended: "SimpleQueue[tuple[Place, Future[Any]]]") -> None:
    place.loading.add_done_callback(lambda future: ended.put((place, future)))


def _refill(place: Place, ended: "SimpleQueue[tuple[Place, Future[Any]]]") -> None:
    fill(place)
    _watch_loading(place, ended)


def _hand_out(
    rows: Sequence[Unit],
    todo: "deque[int]",
    next_attempt: Callable[[int], int],
    places: Sequence[Place],
    ended: "SimpleQueue[tuple[Place, Future[Any]]]",
    proven: bool,
) -> None:
    """Give units to places that have loaded and do nothing: a worker that dies later has died on its unit."""
    now = time.monotonic()
    for place in places:
        if place.running is not None or place.wakes > now or not todo or not place.loading.done():
            continue
        if place.loading.exception() is not None:
            if not proven:
                raise LoadError("its worker died loading its models; is memory enough?")
            _refill(place, ended)
            continue
        place.index = todo.popleft()
        try:
            running = place.worker.submit(rows[place.index], next_attempt(place.index))
        except place.worker.death:  # it died idle: no unit's fault
            todo.appendleft(place.index)
            _refill(place, ended)
            continue
        place.running, place.begun = running, now
        running.add_done_callback(lambda future, place=place: ended.put((place, future)))  # type: ignore[misc]


def _result(place: Place, future: "Future[Outcome]") -> Outcome | None:
    """The outcome, or None when the unit took its worker along; raises what is wrong with more than the unit."""
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, place.worker.death):
        raise getattr(error, "cause", error)  # Ray wraps what was raised
    return None


def _overdue(places: Sequence[Place], timeout_seconds: float) -> list[Place]:
    if not timeout_seconds:
        return []
    now = time.monotonic()
    return [place for place in places if place.running and now - place.begun > timeout_seconds]


def _quiet_seconds(places: Sequence[Place], todo: "deque[int]") -> float:
    now = time.monotonic()
    waking = [place.wakes - now for place in places if place.running is None and place.wakes > now] if todo else []
    return max(0.0, min([TICK_SECONDS, *waking]))


def _pause(places: Sequence[Place]) -> Pause:
    now = time.monotonic()
    waking = [place.wakes - now for place in places if place.running is None and place.wakes > now]
    return Pause(sum(place.running is not None for place in places), len(waking), min(waking, default=0.0))


def _lost(unit: Unit, attempt: int, error_class: str, why: str) -> Outcome:
    message = f"The worker process was lost on this unit: {why}"
    return Outcome(
        unit["unit"], "failed", message=message, error_class=error_class, attempt=attempt, host=socket.gethostname()
    )
