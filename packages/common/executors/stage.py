"""A stage, and where it runs: what `common.executors.run` is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.executors.workers import Unit
from common.ledger.store import Outcome
from common.runs import fingerprint

Work = Callable[[Unit], Outcome]


class StageError(UserError, RuntimeError):
    """A stage cannot run at all: its models do not load or its units are not well formed."""


@dataclass(frozen=True)
class Stage:
    """What is done to every unit, and all that its result depends on.

    `make()` runs once per worker (it loads models) and returns the function from one unit row, a dict with a "unit" id,
    to one Outcome; it must be picklable: a module-level function or a functools.partial of one. `params` (JSON values),
    `models` (role -> content hash) and `version` make the fingerprint; `reads` names the row fields the stage depends
    on (none = all).

    The rest changes how units are done, never what comes of them. `lanes`: exactly one worker for each name, whatever
    the executor says, made by `make(lane)`. `cost`: a row field, or a function of the row, by which the longest units
    are begun first. A unit that takes more than `timeout_seconds` (0 = none) is stopped with its worker and fails.

    A "pending" outcome whose outputs hold "pause_seconds" lets its worker rest so long and puts the unit at the end of
    the queue, for any worker, with no attempt counted; any other "pending" is final for this run.
    """

    name: str
    version: str
    params: dict[str, Any]
    models: dict[str, str]
    make: Callable[..., Work]
    reads: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    cost: str | Callable[[Unit], float] | None = None
    timeout_seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(set(self.lanes)) < len(self.lanes):
            raise StageError(f"Stage '{self.name}' has the lanes {list(self.lanes)}; every lane needs its own name.")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the stage would compute something else."""
        return fingerprint([self.name, self.version, self.params, self.models])

    def input_hash(self, unit: Unit) -> str:
        """16 hex digits over the fields of `unit` that the stage reads."""
        return fingerprint({name: unit.get(name) for name in self.reads} if self.reads else unit)

    def predicted_cost(self, unit: Unit) -> float:
        """By what units are ordered, longest first; a row without the field comes first, for fear of the worst."""
        if self.cost is None:
            return 0.0
        cost = unit.get(self.cost) if isinstance(self.cost, str) else self.cost(unit)
        return float("inf") if cost is None else float(cost)
