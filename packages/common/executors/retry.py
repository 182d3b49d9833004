"""Which units are tried again: those that failed a few times, never those that take workers along again and again."""

from dataclasses import dataclass, field, replace

from common.ledger.store import DIED, PAUSE, Last, Outcome

QUARANTINED = "Quarantined"  # error class of a unit whose worker died too often


@dataclass
class RetryPolicy:
    """What the units, by position, have been through that are not done with.

    A failed unit is tried `retry_failed` times more, one whose worker dies `retry_crashes` times more. With `retry` the
    units that `known` calls failed get a new set of tries, once.
    """

    known: dict[int, Last]
    retry_failed: int = 2
    retry_crashes: int = 2
    retry: bool = False
    _former: dict[int, int] = field(init=False)  # attempts of the sets of tries used up before

    def __post_init__(self) -> None:
        failed = {i: last.attempt for i, last in self.known.items() if last.state == "failed"}
        self._former = failed if self.retry else {}

    def settled(self, index: int) -> bool:
        """Whether the unit is done with before this run has touched it."""
        last = self.known.get(index)
        return last is not None and last.state != "pending" and not (index in self._former or self._again(index, last))

    def next_attempt(self, index: int) -> int:
        """The number of the unit's next attempt, from 1; a pending unit repeats its last."""
        last = self.known.get(index)
        return 1 if last is None else last.attempt + (last.state == "failed")

    def judge(self, index: int, outcome: Outcome) -> tuple[Outcome, bool]:
        """The outcome as it is to be recorded, and whether the unit goes back to the queue."""
        deaths = 0
        if outcome.error_class == DIED:
            before = self.known.get(index)
            deaths = 1 + (before.deaths if before and before.attempt != self._former.get(index) else 0)
            error_class = QUARANTINED if deaths > self.retry_crashes else DIED
            outcome = replace(outcome, error_class=error_class, outputs={"deaths": deaths}, outputs_json="")
        last = Last(outcome.state, outcome.attempt, outcome.error_class, deaths)
        again = PAUSE in outcome.outputs if outcome.state == "pending" else self._again(index, last)
        if again:
            self.known[index] = last
        else:
            self.known.pop(index, None)
        return outcome, again

    def _again(self, index: int, last: Last) -> bool:
        if last.state != "failed" or last.error_class == QUARANTINED:
            return False
        return last.error_class == DIED or last.attempt - self._former.get(index, 0) <= self.retry_failed
