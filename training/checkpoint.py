"""Checkpoints: what it takes to go on exactly (`checkpoints/state/`) and what others load (`adapter/` or `base/`).

A checkpoint is written beside and renamed; the file `latest` is switched last. So a kill or a full disk at any moment
leaves the one before. Frozen weights are not in it: the base is named by its hash in `origin.json`.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from common.runs import RunFolder, atomic_write, disk_guard, fingerprint, plain, read_json, sync, write_json
from omniavatar.checkpoints import AdapterConfig, save_adapter, save_base
from omniavatar.transformer import AvatarTransformer
from training.engine import Engine
from training.model import ModelConfig
from training.report import LOG_FILES

logger = logging.getLogger(__name__)
ORIGIN = "origin.json"
EXPORTS = ("adapter", "base")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save; the end of training always does. `keep`: how many to leave on disk."""

    every_steps: int = 0
    every_seconds: float = 300.0
    keep: int = 2
    export_dtype: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class TrainState:
    """The whole state of a training beside weights and optimizer. `step` is also the position in the data."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training, over all restarts
    skipped: int = 0  # steps whose gradient was not finite
    skipped_in_a_row: int = 0


class Checkpoints:
    """The checkpoints of one training, below `folder`. Methods are called by all ranks together."""

    def __init__(self, folder: Path, engine: Engine, config: CheckpointConfig) -> None:
        self.folder = folder
        self.state_folder = folder / "state"
        self.engine = engine
        self.config = config

    def load(self) -> TrainState:
        """Bring weights and optimizer to the latest checkpoint.

        Raises ValueError when the optimizer is sharded over another number of ranks; at stage 0 any number will do.
        """
        latest = self.state_folder / "latest"
        if not latest.exists():
            return TrainState()
        tag = latest.read_text()
        parts = len(
            list((self.state_folder / tag).glob("*zero_pp_rank_*_optim_states.pt"))
        )  # DeepSpeed's, one per rank
        if parts not in (0, self.engine.world):
            raise ValueError(
                f"{self.engine.world} ranks were started, but the checkpoint {tag} in {self.state_folder} is sharded "
                f"over {parts}; start {parts}"
            )
        return TrainState(**self.engine.load(self.state_folder, tag)["state"])

    def save(self, state: TrainState, model: ModelConfig) -> None:
        """Write a checkpoint and export the weights. Raises DiskFullError; the last checkpoint stays whole."""
        tag = f"step-{state.step:08d}"
        partial, final = self.state_folder / "partial", self.state_folder / tag
        if self.engine.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self.state_folder.mkdir(parents=True, exist_ok=True)
        self.engine.wait()
        with disk_guard(partial):
            self.engine.save(self.state_folder, partial.name, {"state": asdict(state)})
        export(self.engine, self.folder, model, self.config.export_dtype)
        self.engine.wait()
        if self.engine.rank == 0:
            for file in partial.rglob("*"):
                sync(file)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            with atomic_write(self.state_folder / "latest") as path:
                path.write_text(tag)
            for old in sorted(self.state_folder.glob("step-*"))[: -self.config.keep]:
                shutil.rmtree(old)
        self.engine.wait()


def export(engine: Engine, folder: Path, config: ModelConfig, dtype: Literal["fp32", "bf16"]) -> None:
    """Write what inference loads: `adapter/` in the official layout, or `base/` (diffusers) for variant "base"."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = engine.module
    assert isinstance(model, AvatarTransformer)
    if config.variant == "base":
        with engine.gathered(list(model.parameters())):
            if engine.rank == 0:
                save_base(model, folder / "base", kind)
        return
    # Sharded weights are gathered one at a time, so no rank ever holds more than the adapter.
    tensors = dict(engine.trained_tensors())
    if engine.rank == 0:
        save_adapter(tensors, folder / "adapter", adapter_config(config), kind)


def adapter_config(config: ModelConfig) -> AdapterConfig:
    """What the adapter's `config.json` says; an adapter that was continued keeps its own rank and alpha."""
    assert config.variant != "base"
    if config.adapter:
        source = config.adapter / "config.json"
        return AdapterConfig.from_json(read_json(source), source)
    return AdapterConfig(config.variant, config.lora_rank, config.lora_alpha, audio_entry=config.audio_entry)


def adopt_origin(run: RunFolder, origin: Mapping[str, Any]) -> None:
    """Make `checkpoints/state/` the place of this training; by one rank, before any loads.

    `origin` (JSON values) says what the result depends on: settings, hash of the base, digest of the shards. State,
    log and exports of a training of other origin are set aside, not lost: they come back when its origin does.
    """
    state = run.checkpoints / "state"
    origin, before = plain(origin), read_json(state / ORIGIN) if (state / ORIGIN).exists() else None
    if before is not None and before != origin:
        changed = [key for key in sorted(set(origin) | set(before)) if origin.get(key) != before.get(key)]
        logger.warning("Training starts afresh: %s changed, the old state is set aside", ", ".join(changed))
        _hand_over(LOG_FILES, run.logs, state)
        _hand_over(EXPORTS, run.checkpoints, state)
        os.replace(state, aside(state, before))
    if not state.exists() and aside(state, origin).exists():
        os.replace(aside(state, origin), state)
        _hand_over(LOG_FILES, state, run.logs)
        _hand_over(EXPORTS, state, run.checkpoints)
    write_json(state / ORIGIN, origin)


def aside(state: Path, origin: Mapping[str, Any]) -> Path:
    """Where the state of a training waits while the run folder trains something else."""
    return state.with_name(f"state-{fingerprint(origin)}")


def _hand_over(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists():
            os.replace(source / name, target / name)
