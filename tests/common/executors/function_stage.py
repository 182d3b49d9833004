"""A stage out of a function, so that a test says in one line what is done to a unit."""

import copy
from collections.abc import Callable
from typing import Any

from common.executors.stage import Stage
from common.ledger.store import Outcome, Unit


class FunctionStage(Stage[Unit]):
    """`make()`, or with lanes `make(lane)`, is called once per worker and returns the function from a row to an
    Outcome; it must be picklable."""

    def __init__(
        self,
        name: str,
        version: str,
        params: dict[str, Any],
        models: dict[str, str],
        make: Callable[..., Callable[[Unit], Outcome]],
        reads: tuple[str, ...] = (),
        lanes: tuple[str, ...] = (),
        cost: str = "",
        timeout_seconds: float = 0.0,
        product_exists: Callable[[Unit, Outcome], bool] | None = None,
        pool: str = "cpu",
    ) -> None:
        self.pool = pool  # type: ignore[misc]
        self.name, self.version, self.reads, self.cost = name, version, reads, cost  # type: ignore[misc]
        self._params, self._models, self._make, self._lane = params, models, make, ""
        self._lanes, self._timeout, self._exists = lanes, timeout_seconds, product_exists

    def load(self) -> None:
        self._work = self._make(self._lane) if self._lane else self._make()

    def __call__(self, row: Unit) -> Outcome:
        return self._work(row)

    def product_exists(self, row: Unit, outcome: Outcome) -> bool:
        return self._exists(row, outcome) if self._exists else True

    def in_lane(self, lane: str) -> "FunctionStage":
        stage = copy.copy(self)
        stage._lane = lane
        return stage

    @property
    def lanes(self) -> tuple[str, ...]:
        return self._lanes

    @property
    def timeout_seconds(self) -> float:
        return self._timeout

    @property
    def params(self) -> dict[str, Any]:
        return self._params

    @property
    def models(self) -> dict[str, str]:
        return self._models
