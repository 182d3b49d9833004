"""The whole configuration of a training, and what of it its result depends on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.hashes import remembered_hash
from training.checkpoint import CheckpointConfig
from training.data import DataConfig
from training.engine_settings import WITHOUT_EFFECT, EngineConfig
from training.model import ModelConfig
from training.objective import ObjectiveConfig
from training.optimizer import OptimizerConfig
from training.phases import Phase, check_phases
from training.survive import SurviveConfig
from training.validate import ValidationConfig
from training.windows import index_digest


@dataclass(frozen=True)
class TrainConfig:
    """One training. `shards` empty means the run's own.

    It ends after `steps` or `minutes`, whichever comes first; 0 = no limit of that kind.
    """

    shards: Path = Path()
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    survive: SurviveConfig = field(default_factory=SurviveConfig)
    phases: tuple[Phase, ...] = ()
    steps: int = 20_000
    minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise ValueError(f"steps is {self.steps} and minutes is {self.minutes}; set one of them above 0")
        check_phases(self.phases, self.validation.every > 0)


def origin(config: TrainConfig, shards: Path, hashes: Path) -> dict[str, Any]:
    """What the result of a training depends on, flat: not its limits, nor where and how often it reports.

    `hashes`: where the content hash of the weights is remembered.
    """
    settings = asdict(config)
    for free in ("shards", "steps", "minutes", "validation", "checkpoint"):
        del settings[free]
    for free in WITHOUT_EFFECT:
        del settings["engine"][free]
    for free in ("restarts", "stuck_seconds", "save_seconds"):
        del settings["survive"][free]
    for free in ("readers", "max_bad", "audio_encoder"):  # the shards say which audio encoder is theirs
        del settings["data"][free]
    flat = {f"{part}.{key}": v for part, keys in settings.items() if isinstance(keys, dict) for key, v in keys.items()}
    flat |= {"phases": settings["phases"]} if config.phases else {}
    flat |= {
        "seed": config.seed,
        "model.base": remembered_hash(config.model.base, hashes)[:16],
        "shards": index_digest(shards),
    }
    if config.model.adapter:
        flat["model.adapter"] = remembered_hash(config.model.adapter, hashes)[:16]
    return flat
