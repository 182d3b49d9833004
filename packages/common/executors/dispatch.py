"""Dispatcher: gives the rows of a flow to workers as these become free, and records every outcome as it comes back.

One queue per step. A free worker takes from the last step that has something for it, so that rows finish before new
ones begin, and nothing is given out at a step while too much waits after it (back-pressure). Rows whose units are quick
are given out many at a time. A worker that dies or exceeds the time limit is replaced. Where it had several units in
hand, each of them runs alone next time, and only a unit that a worker dies on alone is to blame.
"""

import logging
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from common.executors.flow import HELD_BYTES, UNPLACED, Done, Flow, Task, failed_row, recorded, result_line, unpacked
from common.executors.retry import RetryPolicy
from common.executors.stage import LoadBug, StageError, WorkersLostError
from common.executors.workers import Worker
from common.ledger.jsonlines import JsonLines, json_bytes
from common.ledger.store import DIED, TIMED_OUT, Last, Outcome, clean, ledger_line
from common.process.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)
GROUP_SECONDS = 0.5  # between the signal to a worker and the same one to this process
TICK_SECONDS, WATCH_SECONDS = 1.0, 5.0  # until `watch` is called: without any result, and anyway
HAND_OUT_SECONDS, MOST_UNITS = 1.0, 32  # predicted length of what a worker is given at a time, and most units of it
MOST_WAITING = 4  # hand-outs per worker that may wait at a step before those before it are held back
REST_SECONDS = 300.0  # between two moments at which nothing is being written
MOST_STARTS = 3  # workers that may die in a row, of a slot before they take anything, or loading a step's models
MOST_FETCHED = 10_000  # rows that may wait for a worker after a step with lanes, which waits for the network
NEW_MEAN = 0.1  # weight of a new unit in the mean seconds of a step


@dataclass
class HandOut:
    """What a worker was given: tasks of one step, or none to load the step's models."""

    step: int
    tasks: Sequence[Task]
    future: "Future[Any]"


@dataclass
class Slot:
    """A place for one worker at a time. `lane` is "" or the lane that it serves; `steps` those that it may run."""

    create: Callable[[], Worker]
    steps: Sequence[int]
    lane: str = ""
    held: list[int] = field(default_factory=list)  # steps whose models the worker holds
    handed: deque[HandOut] = field(default_factory=deque)  # the first is in work
    since: float = 0.0  # monotonic time at which the first came into work
    resumes: float = 0.0  # monotonic time from which the slot takes units again
    starts: int = 0  # workers that died before they could take tasks, in a row
    worker: Worker | None = None  # started when there is something for it

    @property
    def started(self) -> bool:
        """Whether it has a worker that can take units."""
        return self.worker is not None and self.worker.started.done()

    @property
    def resting(self) -> bool:
        """Whether it takes no units for a while."""
        return self.resumes > time.monotonic()


class Record:
    """What a dispatcher calls as rows move; `common.executors.run` writes them down."""

    def entered(self, task: Task) -> None:
        """A row waits at a step."""

    def ended(self, step: int, line: bytes, last: Last, again: bool) -> None:
        """An attempt has ended; `line` is its row of the ledger. The unit runs again if `again`."""

    def result(self, task: Task, line: bytes, last: Last, stage: str) -> None:
        """A row has left the flow, at a stage unless it was kept."""

    def products(self, task: Task, products: Sequence[tuple[str, int | None]]) -> None:
        """Files were made, or found, for a row."""

    def finished(self, root: str) -> None:
        """All rows that came of a listed row have left."""

    def flush(self) -> None:
        """What came back together has been told: write it down."""

    def watch(self, slots: Sequence[Slot]) -> None:
        """Called now and then."""


class Dispatcher:
    """Runs one flow. `source` gives the tasks that come from outside, each when there is room for it; `watch` is
    called now and then, and when a worker has died, and raises what ends the run. `generation` is that
    of the rows that leave. `at_rest` is called now and then, while no worker has anything in hand."""

    def __init__(
        self,
        flow: Flow,
        policy: RetryPolicy,
        slots: list[Slot],
        record: Record,
        source: Iterator[Task],
        watch: Callable[[], None],
        generation: int = 1,
        at_rest: Callable[[], object] | None = None,
    ) -> None:
        self.flow, self.policy, self.slots, self.record, self._source = flow, policy, slots, record, source
        self._watch, self._generation, self._at_rest = watch, generation, at_rest
        self._rested = self._watched = time.monotonic()
        self._ends = math.inf  # monotonic time at which a stop no longer waits for what is in hand
        self.broken: dict[int, BaseException] = {}  # steps that cannot start
        self._queues: dict[int, deque[Task]] = {n: deque() for n in range(UNPLACED, len(flow.steps))}
        self._ended: SimpleQueue[Slot] = SimpleQueue()
        self._open: Counter[str] = Counter()  # rows of a listed row that have not left
        self._dropped: set[str] = set()  # listed rows of which some stopped at a broken step
        self._fetched: Counter[str] = Counter()  # bytes that steps with lanes have fetched for an unfinished listed row
        self._weights = [step.stage.weight_bytes for step in flow.steps]
        self._lanes = [bool(step.stage.lanes) for step in flow.steps]
        self._singly = [bool(step.stage.lanes or step.stage.timeout_seconds) for step in flow.steps]
        self._workers = Counter(step for slot in slots for step in slot.steps)
        self._means: dict[int, float] = {}  # seconds per unit
        self._load_deaths: Counter[int] = Counter()  # of workers while they loaded the models of a step, in a row
        self._next: Task | None = None  # taken from the source, without room yet
        self._dry = False

    def run(self) -> None:
        """Run until no row is left, or until what is in hand is done after `stop`. Raises DiskFullError, what `watch`
        raises, and at the end the error of a step that could not start."""
        try:
            self._loop()
        finally:
            self.record.flush()
        for error in self.broken.values():
            raise error

    def _loop(self) -> None:
        while time.monotonic() < self._ends:
            resting = self._at_rest is not None and time.monotonic() - self._rested > REST_SECONDS
            if resting and self._at_rest is not None and not any(slot.handed for slot in self.slots):
                self._at_rest()
                self._rested, resting = time.monotonic(), False
            if self._ends == math.inf and not resting:
                self._feed()
                for slot in self.slots:
                    self._give(slot)
            if not any(slot.handed for slot in self.slots):
                if resting:
                    continue
                if self._ends < math.inf or not (self._waiting() or self._next):
                    break
            for slot in self.slots:
                self._stop_overdue(slot)
            try:
                slot = self._ended.get(timeout=self._quiet_seconds())
            except Empty:
                self._look()
                continue
            if time.monotonic() - self._watched > WATCH_SECONDS:
                self._look()
            # The end that woke us may be of a worker that was stopped meanwhile, or not yet of the first hand-out.
            while slot.handed and slot.handed[0].future.done():
                self._take_back(slot)
                self.record.flush()

    def _look(self) -> None:
        self._watched = time.monotonic()
        self._watch()

    def stop(self, seconds: float) -> None:
        """Give nothing more out, and wait at most so long for what is in hand."""
        self._ends = time.monotonic() + seconds

    def add(self, slot: Slot) -> None:
        """Use another worker from now on."""
        self.slots.append(slot)
        self._workers.update(slot.steps)

    def _start(self, slot: Slot) -> Worker:
        slot.worker = slot.create()
        slot.worker.started.add_done_callback(lambda future: self._ended.put(slot))
        return slot.worker

    def put(self, task: Task) -> None:
        """Queue a task that comes from outside."""
        self._open[task.root] += 1
        self._queue(task)

    def _waiting(self) -> bool:
        return any(queue for step, queue in self._queues.items() if step not in self.broken)

    def _queue(self, task: Task, first: bool = False) -> None:
        if task.step in self.broken:
            self._dropped.add(task.root)  # what was done so far is recorded, so the next run goes on from there
            return
        (self._queues[task.step].appendleft if first else self._queues[task.step].append)(task)

    def _feed(self) -> None:
        """Take tasks from the source while there is room for them at their step."""
        while not self._dry:
            task = self._next or next(self._source, None)
            self._next = task
            if task is None:
                self._dry = True
            elif task.step in self.broken:
                self._next = None
                self._dropped.add(task.root)
            elif self._has_room(task.step) and not self._held_back(task.step):
                self._next = None
                self.put(task)
                if task.step != UNPLACED:
                    self.record.entered(task)
            else:
                break

    def _size(self, step: int, worker: Worker | None = None) -> int:
        """How many units of a step are given out at a time."""
        if worker is not None and not worker.ahead:
            return 1
        if step == UNPLACED:
            return MOST_UNITS
        mean = self._means.get(step)
        if mean is None or self._singly[step]:
            return 1
        return max(1, min(MOST_UNITS, int(HAND_OUT_SECONDS / max(mean, 1e-6))))

    def _has_room(self, step: int) -> bool:
        waiting = len(self._queues[step])
        if step == UNPLACED:  # they bring what is recorded of them, which may be much
            return waiting < 2 * MOST_UNITS
        return waiting < MOST_UNITS or waiting < MOST_UNITS + MOST_WAITING * self._size(step) * self._workers[step]

    def _held_back(self, step: int) -> bool:
        """Whether too much waits after a step to give out more of it."""
        later = range(step + 1, len(self.flow.steps))
        if step >= 0 and self._lanes[step]:
            waiting = sum(len(self._queues[number]) for number in later if number not in self.broken)
            too_much = 0 < self.flow.most_bytes < self._fetched.total()
            return too_much or waiting > MOST_FETCHED
        return any(not self._has_room(number) and number not in self.broken for number in later)

    def _give(self, slot: Slot) -> None:
        """Give a slot as much as it may have in hand."""
        while not slot.resting:
            if slot.worker is not None and len(slot.handed) > slot.worker.ahead:
                return
            if (step := self._choose(slot)) is None:
                return
            worker = slot.worker or self._start(slot)
            if not worker.started.done():
                return
            if isinstance(error := worker.started.exception(), worker.death):
                self._died_starting(slot, worker)
                return
            if error is not None:
                raise error
            size = self._size(step, worker)
            if slot.handed and not self._may_run_ahead(slot, step, size):
                return
            queue, tasks, many = self._queues[step], list[Task](), 0
            while queue and many < size and not (tasks and (queue[0].alone or tasks[0].alone)):
                many += 1 + len(queue[0].recorded)  # what is recorded is gone through as well
                tasks.append(queue.popleft())
            try:
                if step != UNPLACED and step not in slot.held:
                    self._hand(slot, HandOut(step, (), worker.load(step)))
                    slot.held.append(step)
                self._hand(slot, HandOut(step, tasks, worker.submit(tasks)))
            except (StageError, LoadBug) as cause:  # raised at once, by the calling process
                self._break(HandOut(step, tasks, Future()), cause)
            except worker.death:  # it died while idle, which does not count against the units
                for task in reversed(tasks):
                    self._queue(task, first=True)
                if not slot.handed:
                    self._replace(slot)
                return

    def _hand(self, slot: Slot, hand_out: HandOut) -> None:
        if not slot.handed:
            slot.since = time.monotonic()
        slot.handed.append(hand_out)
        hand_out.future.add_done_callback(lambda future: self._ended.put(slot))

    def _may_run_ahead(self, slot: Slot, step: int, size: int) -> bool:
        """Whether a slot that has something in hand may be given more: not long units, which another worker may be free
        for sooner, and not before its worker has proved that it can load."""
        first = slot.handed[0].step
        short = all(self._means.get(n, math.inf) * size <= HAND_OUT_SECONDS for n in (first, step) if n != UNPLACED)
        alone = any(task.alone for task in slot.handed[0].tasks)
        limited = any(n >= 0 and self._singly[n] for n in (first, step))
        return short and not alone and not limited and not slot.lane and bool(slot.handed[0].tasks)

    def _choose(self, slot: Slot) -> int | None:
        """The step that a slot takes from: the last one that has something for it. Models that would take the place of
        others are loaded only when nothing else can be done, or when what waits for them holds others back."""
        ready = [n for n in reversed(slot.steps) if self._queues[n] and n not in self.broken and not self._held_back(n)]
        held = sum(self._weights[n] for n in slot.held)
        fit = [n for n in ready if n == UNPLACED or n in slot.held or held + self._weights[n] <= HELD_BYTES]
        urgent = [n for n in ready if n != UNPLACED and not self._has_room(n)]
        return next(iter(urgent or fit or ready), None)

    def _take_back(self, slot: Slot) -> None:
        """The first hand-out of a slot has ended."""
        hand_out = slot.handed.popleft()
        slot.since = time.monotonic()
        error = hand_out.future.exception()
        if slot.worker is not None and isinstance(error, slot.worker.death):
            slot.handed.appendleft(hand_out)
            self._died(slot, DIED)
        elif isinstance(cause := getattr(error, "cause", error), StageError | LoadBug):  # Ray wraps the original error
            self._break(hand_out, cause)
        elif cause is not None:
            raise cause
        elif not hand_out.tasks:
            slot.held = [step for step in hand_out.future.result() if step not in self.broken]
            del self._load_deaths[hand_out.step]
        else:
            for task, done in zip(hand_out.tasks, hand_out.future.result(), strict=True):
                self._take(slot, task, done)

    def _take(self, slot: Slot, task: Task, done: Done) -> None:
        """One unit has ended in a worker."""
        if done.last is not None:
            mean = self._means.get(task.step, done.seconds)
            slot.starts = 0
            self._means[task.step] = mean + NEW_MEAN * (done.seconds - mean)
            self.record.ended(task.step, done.line, done.last, done.again)
        if done.pause is not None:
            slot.resumes = time.monotonic() + done.pause
        if done.again:
            self._queue(task._replace(last=done.last, alone=False))
            return
        if done.products:
            self.record.products(task, done.products)
            if task.step >= 0 and self.flow.steps[task.step].stage.lanes:
                self._fetched[task.root] += sum(size or 0 for _, size in done.products)
        self._go_on(task, done)

    def _go_on(self, task: Task, done: Done) -> None:
        for line, last, stage in done.results:
            self.record.result(task, line, last, stage)
        for following in done.following:
            self._open[task.root] += 1
            self.record.entered(following)
            self._queue(following)
        self._open[task.root] -= 1
        if not self._open[task.root]:
            del self._open[task.root], self._fetched[task.root]
            if task.root not in self._dropped:
                self.record.finished(task.root)

    def _died_starting(self, slot: Slot, worker: Worker) -> None:
        self._watch()
        slot.starts += 1
        if slot.starts >= MOST_STARTS:
            raise WorkersLostError(f"Workers cannot start: one after the other {_death_reason(worker)}.")
        self._replace(slot)

    def _died(self, slot: Slot, error_class: str) -> None:
        """The worker of a slot is gone, or has to be. What it had in hand goes back; a unit it had alone has failed."""
        self._watch()  # raises when the whole cluster is gone: nobody is to blame then
        handed, worker = list(slot.handed), slot.worker
        assert worker is not None
        why = "was stopped" if error_class == TIMED_OUT else _death_reason(worker)
        first = handed[0]
        journal = worker.host.journal(first.step)
        self._replace(slot)
        if not first.tasks:
            self._load_deaths[first.step] += 1
            if self._load_deaths[first.step] >= MOST_STARTS:
                name = self.flow.steps[first.step].stage.name
                sentence = f"Stage '{name}' cannot start: workers die loading its models, the last one {why}."
                self._break(first, WorkersLostError(sentence))
        for hand_out in reversed(handed[1:]):
            for task in reversed(hand_out.tasks):
                self._queue(task, first=True)
        limit = self.flow.steps[first.step].stage.timeout_seconds if first.step != UNPLACED else 0.0
        reason = f"over {limit:g} s; stopped" if error_class == TIMED_OUT else f"it {why}"
        if first.step == UNPLACED and first.tasks[0].alone:
            unit = first.tasks[0].unit
            raise WorkersLostError(f"Workers die reading what is recorded of '{unit}': one after the other {why}.")
        rest, in_work = self._take_over(first, journal)
        for task in reversed(rest):
            self._queue(task._replace(alone=in_work is None), first=True)
        if in_work is not None:
            self._blame(in_work, error_class, f"The worker process was lost on this unit: {reason}.")

    def _take_over(self, hand_out: HandOut, journal: Path | None) -> tuple[list[Task], Task | None]:
        """What is left of the hand-out of a dead worker: the tasks that go back, and the one that was in work, None
        where that is not known. What its journal holds is recorded and goes back only to be taken further."""
        tasks = list(hand_out.tasks)
        if hand_out.step == UNPLACED or not tasks:
            return tasks, None
        if len(tasks) == 1:
            return [], tasks[0]
        if journal is None or not journal.exists():
            return tasks, None
        rows = list(JsonLines(journal).rows())
        own = max((number for number, row in enumerate(rows, 1) if "begins" in row), default=0)
        back: list[Task] = []
        for task, row in zip(tasks, rows[own:], strict=False):
            if row and (row["unit"], row["input_hash"]) != (clean(task.unit), task.input_hash):
                return tasks, None  # of the hand-out before: the worker died between the two
            if row:
                record = recorded(hand_out.step, row)
                last = Last(record.state, record.attempt, record.error_class)
                again = self.policy.again(last, task.spent)
                self.record.ended(hand_out.step, json_bytes(row) + b"\n", last, again)
                task = task._replace(last=last) if again else task._replace(recorded=(record, *task.recorded))
            back.append(task)
        missing = tasks[len(back) :]
        return [*back, *missing[1:]], missing[0] if missing else None

    def _blame(self, task: Task, error_class: str, message: str) -> None:
        """Record the failure of a unit that its worker died on."""
        attempt = self.policy.next_attempt(task.last)
        outcome = Outcome(
            task.unit, "failed", message=message, error_class=error_class, attempt=attempt, host=socket.gethostname()
        )
        last = Last("failed", attempt, error_class)
        if error_class == DIED:
            outcome, last = self.policy.crashed(task.last, task.spent, outcome)
        stage, again = self.flow.steps[task.step].stage, self.policy.again(last, task.spent)
        line = ledger_line((task.unit, task.input_hash), stage.name, stage.fingerprint, outcome)
        self.record.ended(task.step, line, last, again)
        if again:
            self._queue(task._replace(last=last, alone=True))
            return
        row = failed_row(unpacked(task.row), stage.name, outcome)
        line = (
            result_line(self.flow.fingerprint, task.root, row, last, self._generation) if self.flow.keeps_rows else b""
        )
        self._go_on(task, Done(last.state, results=((line, last, stage.name),)))

    def _break(self, hand_out: HandOut, error: BaseException) -> None:
        """Note that a step cannot start: rows go on as far as to it, and what does not need it is done."""
        if hand_out.step not in self.broken:
            self.broken[hand_out.step] = error
            if len(self.flow.steps) > 1:
                logger.error("%s What does not need it goes on.", error)
        for task in (*hand_out.tasks, *self._queues[hand_out.step]):
            self._dropped.add(task.root)
        self._queues[hand_out.step].clear()

    def _replace(self, slot: Slot) -> None:
        if slot.worker is not None:
            slot.worker.stop()
        slot.held, slot.handed, slot.worker = [], deque(), None

    def _stop_overdue(self, slot: Slot) -> None:
        if slot.handed and slot.handed[0].tasks and slot.handed[0].step >= 0:
            limit = self.flow.steps[slot.handed[0].step].stage.timeout_seconds
            if limit and time.monotonic() - slot.since > limit and not slot.handed[0].future.done():
                self._died(slot, TIMED_OUT)

    def _quiet_seconds(self) -> float:
        now = time.monotonic()
        resuming = [slot.resumes - now for slot in self.slots if slot.resumes > now]
        return max(0.0, min([TICK_SECONDS, *resuming]))


def _death_reason(worker: Worker) -> str:
    # A signal to the whole process group or control group reaches the workers as well. This process's own may come a
    # moment later, and then ends it here, before the crash is counted against the unit.
    reason = worker.death_reason()
    if any(reason.endswith(number.name) for number in STOP_SIGNALS):
        time.sleep(GROUP_SECONDS)
    return reason
