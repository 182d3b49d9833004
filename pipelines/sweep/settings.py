"""Settings of a sweep: one recipe, several seeds, rows that each change something, and the folders of their results.

What rows have in common is made once: a training is named by the hash of all it depends on, so rows that only sample
differently share one, and a changed sweep trains only what is new.

    OUT/data/<key>/         clips and shards                OUT/rows/<row>/seed-<n>/   videos, scores: a run folder
    OUT/trainings/<key>/    logs and checkpoints            OUT/features/              feature cache of all rows
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.ranges import Count, Signed
from common.recipe import RecipeError, load_recipe
from common.runs import fingerprint, hash_path, plain, read_json, write_json
from omniavatar.config import preset
from pipelines.recipe import Recipe, read_recipe

_FOLDER_NAME = re.compile(r"[\w+-][\w+.-]{0,79}")
SWEEPS = Path(__file__).parents[1] / "sweeps"
DATA_SECTIONS = ("small_world", "drawn", "sources", "curation", "latents")
DATA_ROLES = ("vae", "text_encoder", "tokenizer", "audio_encoder")


@dataclass(frozen=True)
class RowConfig:
    """One row: what it sets on top of the sweep, section by section as in a recipe.

    `preset` names settings of generation. A row with `long` makes videos of that many seconds of unseen faces and
    voices instead of the held-out clips. `knobs` are its positions on the axes of plots, `reported` is the row of the
    paper's table that it repeats. `network` changes sizes in the config.json of the transformer, to train it as a base
    (train.model.variant: base); such a row makes no videos, others name it in `transformer_of`.
    """

    label: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    long: float = 0.0
    knobs: dict[str, Signed] = field(default_factory=dict)
    reported: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    transformer_of: str = ""


@dataclass(frozen=True)
class SweepConfig:
    """`rows` on top of `recipe` and `set`, each with every one of `seeds`; differences are to the row `base`, those of
    long rows to `long_base`. A long row makes `long_clips` videos. `reported` names the paper's table."""

    name: str
    recipe: str
    base: str
    rows: dict[str, RowConfig]
    set: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    metrics: tuple[str, ...] = ("sync_c", "sync_d", "offset_zero", "fid", "fvd", "iqa", "ase", "csim")
    long_base: str = ""
    long_clips: Count = 3
    long_metrics: tuple[str, ...] = (
        "sync_c", "csim", "identity_drift", "colour_drift", "colour_shift", "contrast_drift", "seam_z", "seam_p",
        "seam_p_latent",
    )  # fmt: skip
    reported: str = "OmniAvatar Table 3"

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise InputError(f"seeds is {list(self.seeds)}; expected one or more different numbers.")
        if not self.name.isprintable():
            raise InputError(f"name is {self.name[:80]!r}; expected text of one line.")
        if odd := [row for row in self.rows if not _FOLDER_NAME.fullmatch(row)]:
            raise InputError(
                f"Row {odd[0][:80]!r} cannot be a folder; expected up to 80 letters, digits, _ + - and then dots."
            )
        if len({row.casefold() for row in self.rows}) < len(self.rows):
            raise InputError("Two rows differ only in case, and are one folder on some disks; rename one.")
        bases = (("base", self.base, False), ("long_base", self.long_base, True))
        for name, row, long in bases:
            if row not in self.rows and (row or not long):
                raise InputError(f"{name} is {row!r}; expected one of the rows {', '.join(self.rows)}.")
            if row and bool(self.rows[row].long) != long:
                raise InputError(f"{name} is {row!r}, whose long is {self.rows[row].long}; choose another row.")
        for name, each in self.rows.items():
            other = self.rows.get(each.transformer_of)
            if each.transformer_of and (other is None or other.transformer_of):
                raise InputError(f"rows.{name}.transformer_of is {each.transformer_of!r}; expected a row with a base.")


@dataclass(frozen=True)
class Cell:
    """One row with one seed: its recipe, and the keys of the data and of the training that it uses."""

    row: str
    seed: int
    recipe: Recipe
    data: str
    training: str
    long: float

    @property
    def unit(self) -> str:
        """Its name as a unit of work."""
        return f"{self.row}/seed-{self.seed}"


@dataclass(frozen=True)
class Places:
    """Folders of a sweep."""

    out: Path

    def data(self, key: str) -> Path:
        """Run folder of clips and shards."""
        return self.out / "data" / key

    def training(self, key: str) -> Path:
        """Run folder of one training."""
        return self.out / "trainings" / key

    def row(self, row: str, seed: int) -> Path:
        """Run folder of one row and seed."""
        return self.out / "rows" / row / f"seed-{seed}"

    @property
    def features(self) -> Path:
        """Feature cache of the judges, by content."""
        return self.out / "features"

    @property
    def inputs(self) -> Path:
        """Faces and voices of the long videos."""
        return self.out / "inputs"


def read_sweep(name: str) -> SweepConfig:
    """A sweep by name (of this package) or path. Raises RecipeError and FileNotFoundError as recipes do."""
    return load_recipe(name, SweepConfig, search=(SWEEPS,))


def cell_of(config: SweepConfig, row: str, seed: int, places: Places) -> Cell:
    """One row and seed, resolved. Raises RecipeError for settings that the recipe does not have."""
    chosen = config.rows[row]
    recipe = _recipe(config, row, seed)
    upstream = ""
    if chosen.network:
        recipe = _with_transformer(recipe, _network(recipe, chosen.network, places))
    if chosen.transformer_of:
        other = cell_of(config, chosen.transformer_of, seed, places)
        upstream = other.training
        recipe = _with_transformer(recipe, places.training(upstream) / "checkpoints" / "base")
    data = fingerprint([{name: plain(getattr(recipe, name)) for name in DATA_SECTIONS}, _hashes(recipe, DATA_ROLES)])
    start = [upstream] if upstream else _hashes(recipe, ("transformer", "adapter"))
    training = fingerprint([data, plain(recipe.train), recipe.ranks, start])
    return Cell(row, seed, recipe, data, training, chosen.long)


def cells(config: SweepConfig, places: Places) -> list[Cell]:
    """Every row with every seed, the rows of a base first."""
    every = [cell_of(config, row, seed, places) for row in config.rows for seed in config.seeds]
    return sorted(every, key=lambda cell: not cell.recipe.train.model.plain)


def _recipe(config: SweepConfig, row: str, seed: int) -> Recipe:
    chosen = config.rows[row]
    fixed = {"generate": dict(preset(chosen.preset))} if chosen.preset else {}
    settings = [*_flat(config.set), *_flat(fixed), *_flat(chosen.set)]
    # A row is one unit of work in a process of its own, and starts no workers itself.
    settings += [f"train.seed={seed}", "executor.kind=process", "executor.workers=1"]
    try:
        recipe = read_recipe(config.recipe, tuple(settings))
    except RecipeError as error:
        raise RecipeError(f"Row {row!r} of sweep {config.name!r}: {error}") from error
    # One noise per clip and seed, the same in every row.
    return replace(recipe, generate=replace(recipe.generate, seed=recipe.generate.seed + seed))


def _flat(tree: Mapping[str, Any], section: str = "") -> list[str]:
    """A tree of settings as "section.key=value"."""
    lines = []
    for key, value in tree.items():
        name = f"{section}{key}"
        lines += _flat(value, f"{name}.") if isinstance(value, Mapping) else [f"{name}={json.dumps(value)}"]
    return lines


def _with_transformer(recipe: Recipe, path: Path) -> Recipe:
    return replace(recipe, models=recipe.models | {"transformer": str(path)})


def _network(recipe: Recipe, sizes: Mapping[str, Any], places: Places) -> Path:
    """A folder with the recipe's transformer configuration, some sizes changed, for a base to be trained from noise."""
    path = recipe.model_paths(("transformer",))["transformer"]
    if path is None:
        raise InputError("A row with `network` needs models.transformer, whose sizes it changes; name one.")
    folder = places.out / "networks" / fingerprint([hash_path(path / "config.json"), sizes])
    write_json(folder / "config.json", read_json(path / "config.json") | dict(sizes))
    return folder


def _hashes(recipe: Recipe, roles: tuple[str, ...]) -> dict[str, str]:
    return {role: _hash(path) for role, path in recipe.model_paths(roles).items() if path}


@lru_cache
def _hash(path: Path) -> str:
    return hash_path(path)
