from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from omniavatar.planning.network import network_of
from training.config import DataConfig
from training.data.buckets import Bucket, window_bucket
from training.data.order import Cost, Order
from training.planning.flops import work
from training.planning.sizes import PUBLISHED

MIXED = [Bucket(4, 4, frames) for frames in [3, 5, 9] * 7 + [5, 5]]


def tokens(bucket: Bucket) -> float:
    return bucket.tokens


def order_of(batch: int = 1, per_step: int = 4, seed: int = 0, phase: int = 0, cost: Cost | None = tokens) -> Order:
    return Order(MIXED, batch, per_step, seed, phase, cost)


def epoch_of(order: Order, epoch: int) -> list[list[int]]:
    return [order[epoch * order.epoch_length + slot] for slot in range(order.epoch_length)]


@pytest.mark.parametrize("batch", [1, 2, 4, 50])
@pytest.mark.parametrize("per_step", [1, 3, 8, 64])
@pytest.mark.parametrize("phase", [0, 1])
def test_every_sample_comes_once_per_epoch_in_batches_of_one_shape(batch: int, per_step: int, phase: int) -> None:
    order = order_of(batch, per_step, phase=phase)
    for epoch in range(5):
        batches = epoch_of(order, epoch)
        assert Counter(row for rows in batches for row in rows) == Counter(range(23))
        assert all(len({MIXED[row] for row in rows}) == 1 and len(rows) <= batch for rows in batches)


@pytest.mark.parametrize("per_step", [4, 8, 64])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_steps_go_through_the_endless_list_and_every_rank_has_its_own_share(per_step: int, world: int) -> None:
    order = order_of(2, per_step)
    steps = [order.step(step) for step in range(12)]
    ranks = [[slot for step in steps for slot in step[rank::world]] for rank in range(world)]
    assert sorted(slot.number for rank in ranks for slot in rank) == list(range(12 * per_step))
    assert all(slot.rows == order[slot.number] for step in steps for slot in step)
    assert {len(rank) for rank in ranks} == {12 * per_step // world}


def test_the_order_depends_on_seed_phase_and_epoch_and_on_nothing_else() -> None:
    first = epoch_of(order_of(2), 0)
    assert first != epoch_of(order_of(2), 1)
    backwards = order_of(2)
    assert [backwards[slot] for slot in reversed(range(backwards.epoch_length))] == first[::-1]
    assert epoch_of(order_of(2, seed=1), 0) != first
    assert epoch_of(order_of(2, phase=1), 0) != first
    assert epoch_of(order_of(1, 1, phase=1), 0) != epoch_of(order_of(1, 1), 0)
    assert epoch_of(order_of(2, cost=lambda bucket: 7 * bucket.tokens), 0) == first


def test_the_samples_of_a_step_and_its_position_are_random() -> None:
    order = Order([Bucket(4, 4, 3)] * 40 + [Bucket(4, 4, 9)] * 40, 1, 4, seed=0, cost=tokens)
    steps = [frozenset(row for slot in order.step(step) for row in slot.rows) for step in range(40)]
    assert len(set(steps)) == 40  # no four samples meet twice
    long = [min(step) >= 40 for step in steps[:20]]
    changes = sum(a != b for a, b in zip(long, long[1:], strict=False))
    assert 4 <= changes <= 16  # long and short steps are mixed
    placed = np.zeros((2, 400))
    for epoch in range(400):
        for which, row in enumerate((0, 79)):
            batches = epoch_of(order, epoch)
            placed[which, epoch] = batches.index([row])
    # Uniform over 80 places: mean 39.5, standard deviation 23.1 / sqrt(400).
    assert placed.mean(axis=1) == pytest.approx(39.5, abs=4 * 23.1 / 20)


def test_the_composition_of_micro_batches_is_random() -> None:
    order = order_of(batch=2)
    met = [frozenset(rows) for epoch in range(20) for rows in epoch_of(order, epoch) if len(rows) == 2]
    assert len(set(met)) > 60  # of 78 pairs that there are: 2 x 21 and 36


def test_a_step_between_two_epochs_is_filled_from_both_at_equal_cost() -> None:
    buckets = [Bucket(4, 4, frames) for frames in range(3, 40) for _ in range(3)]  # 111 samples, 8 a step
    order = Order(buckets, 1, 8, seed=0, cost=tokens)
    spreads = []
    for border in range(1, 40):
        if border * 111 % 8:
            costs = [order.cost(slot.rows) for slot in order.step(border * 111 // 8)]
            spreads.append(max(costs) / min(costs))
            assert costs == sorted(costs)
    assert len(spreads) > 30
    assert np.median(spreads) < 1.3
    ends = [order.cost(order[border * 111]) for border in range(1, 40)]
    assert max(ends) > 2 * min(ends)  # not always the same sort of clip


def mixture(count: int) -> list[Bucket]:
    """Windows of clips of half a second to four seconds in three resolutions, within the paper's cap."""
    rng = np.random.default_rng(0)
    sizes = [(50, 90), (60, 104), (90, 160)]
    drawn = zip(rng.integers(0, 3, count), rng.uniform(0.5, 4, count), strict=True)
    return [window_bucket(*sizes[size], int(25 * seconds / 4), DataConfig()) for size, seconds in drawn]


def slowest_by_mean(steps: Sequence[Sequence[float]], world: int) -> float:
    """Of the costs of the micro-batches of each step, dealt in turn: what is waited for at each of them."""
    together = np.array(steps).reshape(-1, world)
    return float(together.max(axis=1).sum() / together.mean(axis=1).sum())


@pytest.mark.parametrize(("world", "per_step"), [(8, 8), (64, 64), (8, 32)])
def test_ranks_of_a_step_cost_the_same_where_chance_makes_them_wait(world: int, per_step: int) -> None:
    network = network_of(PUBLISHED["wan2.1-t2v-14b"], "lora", 128, "multi")

    def cost(bucket: Bucket) -> float:
        return work(network, bucket.tokens, bucket.frames, 512, "full").executed

    assert cost(Bucket(60, 100, 20)) / cost(Bucket(60, 104, 9)) == pytest.approx(3.04, abs=0.03)  # 2.14 the tokens
    buckets = mixture(4096)
    balanced = Order(buckets, 1, per_step, seed=0, cost=cost)
    chance = Order(buckets, 1, per_step, seed=0)
    costs = [
        [cost(buckets[row]) for slot in chance.step(step) for row in slot.rows] for step in range(4096 // per_step)
    ]
    assert slowest_by_mean(costs, world) > 1.5
    assert balanced.imbalance(0, world) < 1.02
    assert balanced.imbalance(1, world) < 1.02


@pytest.mark.parametrize("per_step", [4, 8, 64])
def test_the_imbalance_of_an_epoch_is_that_of_the_steps_within_it(per_step: int) -> None:
    order = order_of(2, per_step)
    for epoch in range(4):
        begin, end = epoch * order.epoch_length, (epoch + 1) * order.epoch_length
        within = [s for s in range(60) if begin <= s * per_step and (s + 1) * per_step <= end]
        if within:
            assert order.imbalance(epoch, 4) == pytest.approx(order.imbalance_of(within, 4))


def test_the_others_of_a_bucket_begin_after_oneself() -> None:
    order = order_of()
    assert list(order.others(4)) == [7, 10, 13, 16, 19, 21, 22, 1]
    assert order.epoch_of(0) == 0 and order.epoch_of(5) == 0 and order.epoch_of(6) == 1
