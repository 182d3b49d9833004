"""Retry policy: retries failed units a few times, and quarantines units that keep crashing their workers."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from common.executors.config import ExecutorConfig
from common.ledger.store import DIED, Last, Outcome

QUARANTINED = "Quarantined"  # error class of a unit that crashed its workers too often


@dataclass(frozen=True)
class RetryPolicy:
    """Which units run again. A failed unit is retried up to `retry_failed` times, one whose worker crashes up to
    `retry_crashes` times in a row. With `retry`, units that earlier runs left as failed get one fresh set of attempts.
    """

    retry_failed: int = 2
    retry_crashes: int = 2
    retry: bool = False

    @classmethod
    def of(cls, executor: ExecutorConfig) -> "RetryPolicy":
        """The policy of an executor's settings."""
        return cls(executor.retry_failed, executor.retry_crashes, executor.retry)

    def settled(self, last: Last) -> bool:
        """Whether earlier runs have finished a unit: it has a final outcome or no attempts remain."""
        if last.state == "failed":
            return not self.retry and not self.again(last, 0)
        return last.state != "pending"

    def spent(self, last: Last | None) -> int:
        """Number of the last attempt before a fresh set of attempts, for a unit that an earlier run left like this."""
        return last.attempt if self.retry and last is not None and last.state == "failed" else 0

    def next_attempt(self, last: Last | None) -> int:
        """Number of a unit's next attempt, from 1. Only a failure counts: one that is pending, or whose product was
        lost, repeats its last number."""
        return 1 if last is None else last.attempt + (last.state == "failed")

    def again(self, last: Last, spent: int) -> bool:
        """Whether a unit whose last attempt ended like this goes back to the queue."""
        if last.state != "failed" or last.error_class == QUARANTINED:
            return False
        return last.error_class == DIED or last.attempt - spent <= self.retry_failed

    def crashed(self, before: Last | None, spent: int, outcome: Outcome) -> tuple[Outcome, Last]:
        """The outcome of a unit whose worker crashed on it, as the ledger records it, and what it says."""
        # Crashes count in a row, and those of an earlier set of attempts do not count.
        crashes = 1 + (before.worker_crashes if before and before.attempt != spent else 0)
        error_class = QUARANTINED if crashes > self.retry_crashes else DIED
        outcome = replace(outcome, error_class=error_class, outputs={"worker_crashes": crashes}, outputs_json="")
        return outcome, Last("failed", outcome.attempt, error_class, crashes)


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
