"""Thresholds by name: `omniavatar`, `latentsync`, `strict`, each a partial recipe that recipes can extend."""

from dataclasses import dataclass, field
from pathlib import Path

from common.recipe import load_recipe
from curation.config import CutConfig, SelectConfig, SyncConfig

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class _Curation:
    """What a preset may set. `cut` and `sync` apply when clips are cut; `select` applies at any time."""

    cut: CutConfig = field(default_factory=CutConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    select: SelectConfig = field(default_factory=SelectConfig)


@dataclass(frozen=True)
class _Preset:
    curation: _Curation = field(default_factory=_Curation)


def read_preset(name: str, overrides: tuple[str, ...] = ()) -> SelectConfig:
    """The thresholds of a preset, or of the `curation` section of a YAML file; `overrides` such as "max_faces=2".

    Raises MissingFileError naming the presets, RecipeError.
    """
    changes = [f"curation.select.{override}" for override in overrides]
    return load_recipe(name, _Preset, changes, search=(PRESETS,)).curation.select
