"""What the result of a training depends on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.hashes import remembered_hash
from training.config import WITHOUT_EFFECT, TrainConfig
from training.data.windows import index_digest


def origin(config: TrainConfig, shards: Path, hashes: Path) -> dict[str, Any]:
    """What the result of a training depends on, flat: not its limits, nor where and how often it reports.

    `hashes`: where the content hash of the weights is remembered.
    """
    settings = asdict(config)
    for free in ("shards", "steps", "minutes", "validation", "checkpoint"):
        del settings[free]
    for free in WITHOUT_EFFECT:
        del settings["engine"][free]
    for free in ("restarts", "stall_seconds", "save_seconds"):
        del settings["fault_tolerance"][free]
    for free in ("reader", "readers", "max_bad", "audio_encoder"):  # the shards say which audio encoder is theirs
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
