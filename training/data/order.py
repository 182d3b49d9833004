"""Order of samples: the samples of step n as a pure function of (seed, phase, position), in steps of equal cost.

The micro-batches form one endless list, epoch after epoch, and step n is the n-th run of `per_step` of them. The list
does not depend on the ranks; each takes its share of a step. So a step is the same at any number of ranks, and the only
state of the data is one integer.

Ranks wait for each other at every micro-batch, so those of one step should cost the same. The micro-batches of an epoch
are sorted by cost, equal ones in random order, cut into steps, and the steps are shuffled. A step at the border of two
epochs is filled from both: its two parts come from the same quantile of cost, drawn for that border alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from training.data.buckets import Bucket

Cost = Callable[[Bucket], float]
"""Cost of one sample of a bucket, in any unit."""

ORDER, BORDER = 2, 3  # purpose of a random stream; 1 is the objective's


class BatchSlot(NamedTuple):
    """A micro-batch: its number in the endless list, and its samples."""

    number: int
    rows: list[int]


class Order:
    """The endless list of micro-batches: every sample once per epoch, in steps of `per_step` micro-batches.

    The last micro-batch of a bucket may be short; none is dropped. Each `phase` of a training has an order of its own.
    """

    def __init__(
        self, buckets: Sequence[Bucket], batch: int, per_step: int, seed: int, phase: int = 0, cost: Cost | None = None
    ) -> None:
        self.members: dict[Bucket, list[int]] = defaultdict(list)
        for row, bucket in enumerate(buckets):
            self.members[bucket].append(row)
        self.slot = {row: slot for rows in self.members.values() for slot, row in enumerate(rows)}
        self.buckets, self.batch, self.per_step, self.seed, self.phase = buckets, batch, per_step, seed, phase
        costs = {bucket: cost(bucket) if cost else 1.0 for bucket in self.members}
        self.costs = [costs[bucket] for bucket in buckets]
        self.epoch_length = sum(-(-len(rows) // batch) for rows in self.members.values())
        self._epoch = lru_cache(maxsize=2)(self._ordered_epoch)

    def __getitem__(self, index: int) -> list[int]:
        """The samples of micro-batch `index` of the endless list."""
        epoch, slot = divmod(index, self.epoch_length)
        return self._epoch(epoch).batch(slot)

    def step(self, step: int) -> list[BatchSlot]:
        """The micro-batches of a step, cheap ones first: dealt in turn, so neighbours run at the same time."""
        first = step * self.per_step
        batch_slots = [BatchSlot(number, self[number]) for number in range(first, first + self.per_step)]
        return sorted(batch_slots, key=lambda slot: (self.cost(slot.rows), slot.number))

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.per_step // self.epoch_length

    def cost(self, rows: list[int]) -> float:
        """Cost of a micro-batch."""
        return len(rows) * self.costs[rows[0]]

    def imbalance(self, epoch: int, world: int) -> float:
        """Time of the slowest of `world` ranks by the mean, over the steps within an epoch; 1 is perfect."""
        first = -(-epoch * self.epoch_length // self.per_step)
        after = (epoch + 1) * self.epoch_length // self.per_step
        if first >= after:  # an epoch shorter than a step
            return self.imbalance_of([first], world)
        drawn, begin = self._epoch(epoch), epoch * self.epoch_length
        inside = slice(first * self.per_step - begin, after * self.per_step - begin)
        starts, stops = drawn.starts[inside], drawn.stops[inside]
        costs = (stops - starts) * np.array(self.costs)[drawn.rows[starts]]
        return _slowest_by_mean(np.sort(costs.reshape(-1, self.per_step)), world)

    def imbalance_of(self, steps: Sequence[int], world: int) -> float:
        """The same over the given steps."""
        costs = np.array([[self.cost(slot.rows) for slot in self.step(step)] for step in steps])
        return _slowest_by_mean(costs, world)

    def others(self, row: int) -> Iterator[int]:
        """The other samples of its bucket, in the order in which they replace it."""
        rows, slot = self.members[self.buckets[row]], self.slot[row]
        return (rows[(slot + further) % len(rows)] for further in range(1, len(rows)))

    def _ordered_epoch(self, epoch: int) -> "_Epoch":
        rng = np.random.default_rng((self.seed, ORDER, self.phase, epoch))
        drawn, by_cost = self._batches(rng)
        head = min(
            -epoch * self.epoch_length % self.per_step, len(by_cost)
        )  # completes the step begun in the epoch before
        tail = (len(by_cost) - head) % self.per_step  # begins the step that the next epoch completes
        before, by_cost = self._at_quantile(by_cost, head, epoch)
        after, by_cost = self._at_quantile(by_cost, tail, epoch + 1)
        steps = by_cost.reshape(-1, self.per_step)
        return drawn.taken(np.concatenate([before, steps[rng.permutation(len(steps))].ravel(), after]))

    def _batches(self, rng: np.random.Generator) -> tuple["_Epoch", np.ndarray]:
        """All samples in random micro-batches of one shape; and these by cost, equal ones in random order."""
        rows, starts, stops, costs = [], [], [], []
        begin = 0
        for bucket in sorted(self.members):
            members = rng.permutation(self.members[bucket])
            first = np.arange(begin, begin + len(members), self.batch)
            last = np.minimum(first + self.batch, begin + len(members))
            rows.append(members)
            starts.append(first)
            stops.append(last)
            costs.append((last - first) * self.costs[members[0]])
            begin += len(members)
        by_chance = rng.permutation(self.epoch_length)
        by_cost = by_chance[np.argsort(np.concatenate(costs)[by_chance], kind="stable")]
        return _Epoch(np.concatenate(rows), np.concatenate(starts), np.concatenate(stops)), by_cost

    def _at_quantile(self, line: np.ndarray, count: int, border: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` neighbours in cost, at the quantile drawn for a border between epochs, and the rest."""
        quantile = np.random.default_rng((self.seed, BORDER, self.phase, border)).random()
        first = round(quantile * (len(line) - count))
        return line[first : first + count], np.concatenate([line[:first], line[first + count :]])


def _slowest_by_mean(costs: np.ndarray, world: int) -> float:
    """Of the costs (steps, micro-batches) dealt to `world` ranks in turn: `world` neighbours run at the same time."""
    together = costs.reshape(-1, world)
    return float(together.max(axis=1).sum() / together.mean(axis=1).sum())


class _Epoch(NamedTuple):
    """Micro-batches as arrays, since an epoch may hold a million: micro-batch i is rows[starts[i] : stops[i]]."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def taken(self, order: np.ndarray) -> "_Epoch":
        """The micro-batches of these numbers, in this order."""
        return _Epoch(self.rows, self.starts[order], self.stops[order])

    def batch(self, slot: int) -> list[int]:
        """The samples of a micro-batch."""
        return self.rows[self.starts[slot] : self.stops[slot]].tolist()
