"""The recipe of a run as one typed object, read from the YAML files in recipes/."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import InputError, MissingFileError
from common.executors.config import ExecutorConfig
from common.ranges import Count
from common.recipe import load_recipe
from curation.config import CurationConfig, SourcesConfig
from curation.decide.presets import PRESETS
from eval.config import EvalConfig
from latents.config import LatentsConfig
from miniature.config import SmallWorldConfig
from miniature.weights import model_paths
from omniavatar.config import GenerateConfig
from perception.packaged import packaged_weights
from pipelines.config import DrawnConfig, SamplesConfig, VideosConfig
from pipelines.roles import MODEL_ROLES
from training.audioavatar.config import AvatarTrainConfig
from training.config import TrainConfig

PLAIN_NAME = re.compile(r"\w[\w .+()=,@\[\]-]{0,99}")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Sections are read by the step of their name. `ranks` is the number of training processes on this machine.

    `weights` says where models come from that `models` does not name: the shipped tiny ones, or none of those. Judges
    that an installed package carries (`perception.packaged`) are used either way. In `models` (role -> path) nothing or
    "" takes a role's weights away.
    `small_world` draws the sources instead of finding them, `drawn` kept clips without any judging. `mirror` is an
    address such as s3://bucket/run where a copy of the run is kept, stage by stage, from which another machine goes on.
    With `avatar` a run trains the second system, by the steps of `pipelines.audioavatar`.
    """

    name: str
    weights: Literal["miniature", "none"] = "none"
    models: dict[str, str | None] = field(default_factory=dict)
    small_world: SmallWorldConfig | None = None
    drawn: DrawnConfig | None = None
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ranks: Count = 1
    mirror: str = ""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    videos: VideosConfig = field(default_factory=VideosConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    avatar: AvatarTrainConfig | None = None

    def __post_init__(self) -> None:
        # Without --run the run folder is runs/<name>.
        if not PLAIN_NAME.fullmatch(self.name):
            raise InputError(f"name is {self.name[:60]!r}: expected a plain name, such as talks-2.b, and no path.")

    def named_models(self) -> dict[str, Path | None]:
        """Role -> path, whether it exists or not; None where there are no weights. Raises ValueError for no role."""
        unknown = sorted(set(self.models) - set(MODEL_ROLES))
        if unknown:
            raise InputError(f"models.{unknown[0]} is no role; the roles are {', '.join(MODEL_ROLES)}.")
        shipped = model_paths() if self.weights == "miniature" else {}
        named = {role: Path(path) if path else None for role, path in self.models.items()}
        return dict.fromkeys(MODEL_ROLES) | packaged_weights() | shipped | named

    def model_paths(self, roles: Collection[str] = MODEL_ROLES) -> dict[str, Path | None]:
        """`named_models` of these roles, which exist. Raises ValueError for an unknown role, FileNotFoundError."""
        paths = {role: path for role, path in self.named_models().items() if role in roles}
        for role, path in paths.items():
            if path is not None and not path.exists():
                raise MissingFileError(
                    f"models.{role} is {path}, which does not exist; expected the weights of that role. Correct the "
                    f"path, or leave it out: what needs them is then skipped or said to be pending."
                )
        return paths


def read_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by name (of this package) or path; `overrides` are "section.key=value". Raises RecipeError."""
    return load_recipe(name, Recipe, overrides, search=(RECIPES, PRESETS))
