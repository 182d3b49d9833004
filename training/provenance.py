"""Provenance of a training: settings, weights and shards that its result depends on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.hashes import remembered_hash
from training.config import WITHOUT_EFFECT, TrainConfig
from training.data.windows import index_digest


def origin(config: TrainConfig, shards: Path, hashes: Path) -> dict[str, Any]:
    """Flat dictionary of all that the result of a training depends on: no limits, nothing about speed or reporting.

    `hashes`: cache file for the content hashes of the weights.
    """
    settings = asdict(config)
    for excluded in ("shards", "steps", "minutes", "validation", "checkpoint"):
        del settings[excluded]
    for excluded in WITHOUT_EFFECT:
        del settings["engine"][excluded]
    for excluded in ("restarts", "stall_seconds", "save_seconds"):
        del settings["fault_tolerance"][excluded]
    for excluded in ("reader", "readers", "max_bad", "audio_encoder"):  # the shards name their audio encoder
        del settings["data"][excluded]
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
