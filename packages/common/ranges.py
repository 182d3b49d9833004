"""Ranges of numbers in recipes, as types of fields: `steps: Count = 25`.

`common.recipe` checks them where a recipe is read. A number without a range is finite and 0 or more.
"""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `low` (without `low` itself when it is `open`) to `high`; infinity and NaN are never inside."""

    low: float = 0.0
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range."""
        inside = self.low < value <= self.high if self.open else self.low <= value <= self.high
        return inside and math.isfinite(value)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        if self.low == -math.inf:
            return "a finite number"
        return f"a number above {self.low:g}" if self.open else f"a number of {self.low:g} or more"


NOT_NEGATIVE = Range()
Count = Annotated[int, Range(1)]  # at least one
Positive = Annotated[float, Range(open=True)]
Share = Annotated[float, Range(0, 1)]
Signed = Annotated[float, Range(-math.inf)]
Correlation = Annotated[float, Range(-1, 1)]
Percent = Annotated[float, Range(0, 100)]
