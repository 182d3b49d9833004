"""Retry policy: retries failed units a few times, and quarantines units that keep crashing their workers."""

from dataclasses import dataclass, field, replace

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
