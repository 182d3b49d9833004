from dataclasses import replace

import pytest

from common.executors.retry import RetryPolicy
from common.ledger.store import Last, Outcome

FAILED = Outcome("u", "failed", error_class="KeyError")
DIED = Outcome("u", "failed", error_class="WorkerDied")


def play(policy: RetryPolicy, *outcomes: Outcome) -> list[tuple[int, str, bool]]:
    """Attempt, error class and whether there will be another, of every outcome until there is none."""
    seen = []
    for outcome in outcomes:
        judged, again = policy.judge(0, replace(outcome, attempt=policy.next_attempt(0)))
        seen.append((judged.attempt, judged.error_class, again))
        if not again:
            break
    return seen


def test_failures_are_retried_a_few_times() -> None:
    assert play(RetryPolicy({}, retry_failed=2), *[FAILED] * 5) == [
        (1, "KeyError", True), (2, "KeyError", True), (3, "KeyError", False)
    ]  # fmt: skip
    assert play(RetryPolicy({}, retry_failed=0), FAILED) == [(1, "KeyError", False)]
    assert play(RetryPolicy({}), FAILED, Outcome("u", "kept")) == [(1, "KeyError", True), (2, "", False)]


def test_worker_crashes_count_apart_from_failures_and_in_a_row() -> None:
    assert [error for _, error, _ in play(RetryPolicy({}, retry_crashes=1), DIED, DIED)] == [
        "WorkerDied",
        "Quarantined",
    ]
    mixed = play(RetryPolicy({}, retry_failed=1, retry_crashes=1), DIED, FAILED)
    assert mixed == [(1, "WorkerDied", True), (2, "KeyError", False)]
    after_a_kill = RetryPolicy({0: Last("failed", 2, "WorkerDied", worker_crashes=2)}, retry_crashes=2)
    assert not after_a_kill.settled(0) and play(after_a_kill, DIED) == [(3, "Quarantined", False)]


@pytest.mark.parametrize("last", [Last("failed", 3, "KeyError"), Last("failed", 3, "Quarantined", 3)])
def test_exhausted_units_get_one_fresh_set_of_attempts_with_retry(last: Last) -> None:
    assert RetryPolicy({0: last}).settled(0)
    again = RetryPolicy({0: last}, retry_failed=1, retry_crashes=1, retry=True)
    assert not again.settled(0)
    outcomes = [replace(FAILED, error_class=last.error_class.replace("Quarantined", "WorkerDied"))] * 3
    assert [(attempt, more) for attempt, _, more in play(again, *outcomes)] == [(4, True), (5, False)]


def test_pending_repeats_its_attempt_and_returns_only_after_a_pause() -> None:
    pause = Outcome("u", "pending", outputs={"pause_seconds": 9})
    assert play(RetryPolicy({}), pause, pause, FAILED, Outcome("u", "pending")) == [
        (1, "", True), (1, "", True), (1, "KeyError", True), (2, "", False)
    ]  # fmt: skip
    assert not RetryPolicy({0: Last("pending", 1)}).settled(0)
