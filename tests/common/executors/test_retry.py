from dataclasses import replace

import pytest

from common.executors.retry import RetryPolicy
from common.ledger.store import Last, Outcome

FAILED = Outcome("u", "failed", error_class="KeyError")
DIED = Outcome("u", "failed", error_class="WorkerDied")


def play(policy: RetryPolicy, last: Last | None, *outcomes: Outcome) -> list[tuple[int, str, bool]]:
    """Attempt, error class and whether there will be another, of every outcome until there is none."""
    seen, spent = [], policy.spent(last)
    for outcome in outcomes:
        outcome = replace(outcome, attempt=policy.next_attempt(last))
        if outcome.error_class == "WorkerDied":
            outcome, last = policy.crashed(last, spent, outcome)
        else:
            last = Last(outcome.state, outcome.attempt, outcome.error_class)
        seen.append((outcome.attempt, outcome.error_class, policy.again(last, spent)))
        if not seen[-1][2]:
            break
    return seen


def test_failures_are_retried_a_few_times() -> None:
    assert play(RetryPolicy(retry_failed=2), None, *[FAILED] * 5) == [
        (1, "KeyError", True), (2, "KeyError", True), (3, "KeyError", False)
    ]  # fmt: skip
    assert play(RetryPolicy(retry_failed=0), None, FAILED) == [(1, "KeyError", False)]
    assert play(RetryPolicy(), None, FAILED, Outcome("u", "kept")) == [(1, "KeyError", True), (2, "", False)]


def test_worker_crashes_count_apart_from_failures_and_in_a_row() -> None:
    assert [error for _, error, _ in play(RetryPolicy(retry_crashes=1), None, DIED, DIED)] == [
        "WorkerDied",
        "Quarantined",
    ]
    mixed = play(RetryPolicy(retry_failed=1, retry_crashes=1), None, DIED, FAILED)
    assert mixed == [(1, "WorkerDied", True), (2, "KeyError", False)]
    last, after_a_kill = Last("failed", 2, "WorkerDied", worker_crashes=2), RetryPolicy(retry_crashes=2)
    assert not after_a_kill.settled(last) and play(after_a_kill, last, DIED) == [(3, "Quarantined", False)]


@pytest.mark.parametrize("last", [Last("failed", 3, "KeyError"), Last("failed", 3, "Quarantined", 3)])
def test_exhausted_units_get_one_fresh_set_of_attempts_with_retry(last: Last) -> None:
    assert RetryPolicy().settled(last)
    again = RetryPolicy(retry_failed=1, retry_crashes=1, retry=True)
    assert not again.settled(last)
    outcomes = [replace(FAILED, error_class=last.error_class.replace("Quarantined", "WorkerDied"))] * 3
    assert [(attempt, more) for attempt, _, more in play(again, last, *outcomes)] == [(4, True), (5, False)]


def test_what_is_pending_or_lost_its_product_repeats_its_attempt() -> None:
    policy = RetryPolicy()
    assert not policy.settled(Last("pending", 2)) and policy.next_attempt(Last("pending", 2)) == 2
    assert policy.settled(Last("kept", 2)) and policy.next_attempt(Last("kept", 2)) == 2
