"""The recipe's `small_world` section."""

from dataclasses import dataclass

from common.ranges import Positive


@dataclass(frozen=True)
class SmallWorldConfig:
    """How many sources of each kind are drawn; `seed` is the first clip number, counted up for every source."""

    clean: int = 30
    offset: int = 21
    each_fault: int = 3
    seconds: Positive = 3.6
    seed: int = 500_000
