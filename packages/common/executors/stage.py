"""Stage base class: one operation on units, with its settings, models and fingerprint.

A stage is a frozen dataclass that derives from `Stage`. Its fields are its settings, and its fingerprint is made of
them: a field that has no effect on the result is declared with `no_effect()`, the weights of a model are a `Weights`.
A worker gets a pickled copy, calls `load` once, and then the stage itself with one row after the other:

    @dataclass(frozen=True)
    class SharpnessStage(Stage[ClipRow]):
        name = "sharpness"
        version = "1"
        reads = ("unit", "sha256")
        config: SharpnessConfig
        folder: Path = no_effect()

        def __call__(self, row: ClipRow) -> Outcome:
            ...
            return Outcome(row["unit"], "kept", outputs={"sharpness": value})
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from common.errors import UserError
from common.ledger.store import Outcome, Unit
from common.runs import fingerprint, hash_path, plain

Row = TypeVar("Row", bound=Mapping[str, Any])
ROWS = "rows"  # output of a stage that makes several rows of one: a list of dicts, each with a `unit` of its own

_NO_EFFECT, _LOADED = "no_effect", "loaded"


class StageError(UserError, RuntimeError):
    """A stage cannot run at all: its models do not load or its units are malformed."""


class WorkersLostError(StageError):
    """Workers end before they can work: a stage's models do not fit, or the machines are gone."""


class LoadBug(RuntimeError):
    """A stage cannot run at all, for a reason that is no fault of the user's."""


@dataclass(frozen=True)
class Weights:
    """The weights behind a model role. `sha256`, of the file or folder, is part of a stage's fingerprint; `path` is
    where this machine has them. Without weights `path` is None and the hash empty."""

    role: str
    path: Path | None
    sha256: str

    @classmethod
    def of(cls, role: str, path: Path | None) -> "Weights":
        """Weights with the hash of the file or folder at `path`. Raises FileNotFoundError."""
        return cls(role, path, hash_path(path) if path else "")

    @property
    def file(self) -> Path:
        """The path of weights that must exist."""
        assert self.path is not None, f"there are no weights for {self.role}"
        return self.path


def no_effect(**options: Any) -> Any:
    """A dataclass field that the result of a stage does not depend on: a folder, a device, a number of threads."""
    return dataclasses.field(metadata={_NO_EFFECT: True}, **options)


def loaded(**options: Any) -> Any:
    """A dataclass field that `load` fills, in the worker: a network, a detector."""
    metadata = {_NO_EFFECT: True, _LOADED: True}
    return dataclasses.field(init=False, repr=False, compare=False, metadata=metadata, **options)


class Stage(Generic[Row]):
    """Base of all stages; see the module's docstring for how to write one.

    `name` and `version` (increase it when the same settings would give another result) go into the fingerprint. `reads`
    names the row fields that the result depends on (none = all); `reads_if_set` those that count only where they have
    a value, so that a field that came later leaves the outcomes of rows without it valid. `cost` names a row field;
    units with the highest cost start first.

    A "pending" outcome whose outputs hold "pause_seconds" pauses its worker for that time and puts the unit at the end
    of the queue, for any worker, without counting an attempt; any other "pending" is final for this run. A stage that
    makes several rows of one returns them as the output `rows`.

    `pool` names the workers that run it: "cpu", "gpu" for networks (the same workers where no GPU is reserved), or a
    name of its own, which a Ray cluster offers as the custom resource `pool:NAME`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    reads_if_set: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = ""
    pool: ClassVar[str] = "cpu"

    def load(self) -> None:
        """Load models into the fields declared with `loaded()`, by `hold`; called once in every worker."""

    def __call__(self, row: Row) -> Outcome:
        """Run one unit. Any exception becomes a failed attempt of this unit alone."""
        raise NotImplementedError

    def products(self, row: Row, outcome: Outcome) -> Mapping[Path, int | None]:
        """The files that a kept outcome stands for, each with its size in bytes where that is known."""
        return {}

    def product_exists(self, row: Row, outcome: Outcome) -> bool:
        """Whether the products of a kept outcome still exist; if not, the unit runs again.

        Called once for every kept unit that a run meets, and nowhere else.
        """
        return all(is_whole(path, size) for path, size in self.products(row, outcome).items())

    def in_lane(self, lane: str) -> "Stage[Row]":
        """The copy of the stage for one of its lanes."""
        return self

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of lanes: each gets exactly one worker, whatever the executor says. Empty: any number of workers."""
        return ()

    @property
    def timeout_seconds(self) -> float:
        """Time limit of a unit; past it the worker is killed and the unit fails. 0 = no limit."""
        return 0.0

    def hold(self, **models: Any) -> None:
        """Set fields declared with `loaded()`, which a frozen dataclass otherwise refuses."""
        for name, model in models.items():
            object.__setattr__(self, name, model)

    @property
    def params(self) -> dict[str, Any]:
        """Settings that the result depends on, as JSON values: the fields. Those of a field named `config`, the stage's
        own section of the recipe, stand at the top level."""
        fields = {field.name: getattr(self, field.name) for field in self._effective_fields()}
        settings = {name: plain(value) for name, value in fields.items() if not _weights_in(value)}
        own: dict[str, Any] = settings.pop("config", {})
        return own | settings

    @property
    def models(self) -> dict[str, str]:
        """Role -> SHA-256 of the weights that the result depends on."""
        fields = (getattr(self, field.name) for field in self._effective_fields())
        return {weights.role: weights.sha256 for value in fields for weights in _weights_in(value)}

    @property
    def weight_bytes(self) -> int:
        """Size of the weights that `load` reads."""
        fields = (getattr(self, field.name) for field in self._effective_fields())
        paths = [weights.path for value in fields for weights in _weights_in(value) if weights.path is not None]
        files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the stage would compute something else."""
        return fingerprint([self.name, self.version, self.params, self.models])

    def input_hash(self, unit: Unit) -> str:
        """16 hex digits over the fields of `unit` that the stage reads."""
        if not self.reads:
            return fingerprint(unit)
        later = {name: unit[name] for name in self.reads_if_set if unit.get(name)}
        return fingerprint({name: unit.get(name) for name in self.reads} | later)

    def predicted_cost(self, unit: Unit) -> float:
        """Sort key of the units, highest first; a row without the field has an unknown cost and sorts first."""
        cost = unit.get(self.cost) if self.cost else 0.0
        return float("inf") if cost is None else float(cost)

    def _effective_fields(self) -> "list[dataclasses.Field[Any]]":
        if not dataclasses.is_dataclass(self):
            return []
        return [field for field in dataclasses.fields(self) if not field.metadata.get(_NO_EFFECT)]


def is_whole(path: Path, size: int | None) -> bool:
    """Whether a file is there, of this size if one is given."""
    return path.is_file() and (size is None or path.stat().st_size == size)


def _weights_in(value: Any) -> tuple[Weights, ...]:
    """The value of a field as weights: itself, or a tuple of them; none for any other value."""
    items = value if isinstance(value, tuple) and value else (value,)
    return items if all(isinstance(item, Weights) for item in items) else ()
