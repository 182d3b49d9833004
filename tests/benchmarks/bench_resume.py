"""Going on in the middle of an epoch as large as the paper's: which samples come next, drawn from nothing."""

from collections.abc import Callable

import numpy as np

from tests.benchmarks.measure import ROUNDS, Row, cpu_seconds
from training.config import DataConfig
from training.data.buckets import window_bucket
from training.data.order import Order

CLIPS, SIZES = 774_207, ((50, 90), (90, 90), (90, 50))


def test_any_position(report: Callable[[Row], None]) -> None:
    rng = np.random.default_rng(0)
    drawn = zip(rng.integers(0, 3, CLIPS), rng.uniform(3, 20, CLIPS), strict=True)
    buckets = [window_bucket(*SIZES[size], int(25 * seconds) // 4, DataConfig()) for size, seconds in drawn]

    def go_on(step: int) -> list[int]:
        order = Order(buckets, 1, 64, seed=0, cost=lambda bucket: bucket.tokens**1.5)
        return [row for place in order.step(step) for row in place.rows]

    assert go_on(9_000) == go_on(9_000) and len(set(go_on(9_000))) == 64
    seconds = tuple(cpu_seconds(lambda: go_on(9_000 + i)) for i in range(ROUNDS))  # noqa: B023 - called at once
    report(Row("going on at step 9,000 of 774,207 clips, 64 ranks", "one second", seconds, (1.0,) * ROUNDS, 1.0))
