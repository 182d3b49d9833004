"""Retry policy: retries failed units a few times, and quarantines units that keep crashing their workers."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from common.executors.config import ExecutorConfig
from common.ledger.store import DIED, PAUSE, Last, Outcome

QUARANTINED = "Quarantined"  # error class of a unit that crashed its workers too often


@dataclass
class RetryPolicy:
    """Retry state of the unfinished units, by position.

    A failed unit is retried up to `retry_failed` times, one whose worker crashes up to `retry_crashes` times in a row.
    `last_results` holds the ledger's last row of every unit that failed or is pending. With `retry`, units that it says
    failed get one fresh set of attempts.
    """

    last_results: dict[int, Last]
    retry_failed: int = 2
    retry_crashes: int = 2
    retry: bool = False
    _spent: dict[int, int] = field(init=False)  # number of the last attempt before a fresh set of attempts began

    def __post_init__(self) -> None:
        failed = {i: last.attempt for i, last in self.last_results.items() if last.state == "failed"}
        self._spent = failed if self.retry else {}

    def settled(self, index: int) -> bool:
        """Whether earlier runs have finished the unit: it has a final outcome or no attempts remain."""
        last = self.last_results.get(index)
        if last is None or last.state == "pending":
            return False
        return not (index in self._spent or self._retryable(index, last))

    def next_attempt(self, index: int) -> int:
        """Number of the unit's next attempt, from 1. A pending unit repeats its last number: nothing has failed."""
        last = self.last_results.get(index)
        return 1 if last is None else last.attempt + (last.state == "failed")

    def judge(self, index: int, outcome: Outcome) -> tuple[Outcome, bool]:
        """The outcome as the ledger records it, and whether the unit goes back to the queue."""
        crashes = 0
        if outcome.error_class == DIED:
            before = self.last_results.get(index)
            # Crashes count in a row, and those of an earlier set of attempts do not count.
            crashes = 1 + (before.worker_crashes if before and before.attempt != self._spent.get(index) else 0)
            error_class = QUARANTINED if crashes > self.retry_crashes else DIED
            outcome = replace(outcome, error_class=error_class, outputs={"worker_crashes": crashes}, outputs_json="")
        last = Last(outcome.state, outcome.attempt, outcome.error_class, crashes)
        again = PAUSE in outcome.outputs if outcome.state == "pending" else self._retryable(index, last)
        if again:
            self.last_results[index] = last
        else:
            self.last_results.pop(index, None)
        return outcome, again

    def _retryable(self, index: int, last: Last) -> bool:
        if last.state != "failed" or last.error_class == QUARANTINED:
            return False
        return last.error_class == DIED or last.attempt - self._spent.get(index, 0) <= self.retry_failed


@dataclass(frozen=True)
class Unsettled:
    """Units that a stage has left without a final outcome: how many are pending, how many failed, and the lowest number
    of attempts that one of the failed has had (0 after a crash; None when all of them are quarantined or none failed).
    """

    stage: str
    pending: int
    failed: int
    attempts: int | None

    @property
    def units(self) -> int:
        """How many there are."""
        return self.pending + self.failed

    def may_run(self, executor: ExecutorConfig) -> bool:
        """Whether a run with these settings would run one of them again."""
        has_attempts = self.attempts is not None and self.attempts <= executor.retry_failed
        return bool(self.pending or has_attempts or (executor.retry and self.failed))


_collected: ContextVar[list[Unsettled] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_unsettled() -> Iterator[list[Unsettled]]:
    """Context with the list that every stage which runs in it adds an entry to."""
    stages: list[Unsettled] = []
    token = _collected.set(stages)
    try:
        yield stages
    finally:
        _collected.reset(token)


def record_unsettled(stage: str, units: Collection[Last]) -> None:
    """Add what a stage has left, the last result of each unit that failed or is pending, to the list of the context."""
    if (stages := _collected.get()) is None:
        return
    failed = [last for last in units if last.state == "failed"]
    attempts = [0 if last.error_class == DIED else last.attempt for last in failed if last.error_class != QUARANTINED]
    stages.append(Unsettled(stage, len(units) - len(failed), len(failed), min(attempts, default=None)))
