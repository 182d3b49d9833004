"""Checkpoints: state for an exact resume (`checkpoints/state/`), exports for inference, provenance of both.

A checkpoint is written to a temporary folder and renamed; the file `latest` is updated last. So after a kill or a full
disk at any moment the previous one is intact. Frozen weights are not saved: `origin.json` has the hash of the base.

Exports below `checkpoints/`: `adapter/` (or `base/`) of the last checkpoint, `best/` of the lowest held-out loss so far
with `best.json`, and `adapters/step-<n>/` every `export_every_steps` steps, which are never removed.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from common.runs import (
    RunFolder,
    atomic_write,
    disk_guard,
    fingerprint,
    plain,
    read_format_version,
    read_json,
    sync,
    write_format_version,
    write_json,
)
from training.checkpoint_files import LATEST, export_problem, latest_checkpoint, write_parts
from training.config import CheckpointConfig, ModelConfig
from training.engine.universal import sharded_over, to_universal
from training.engine.zero import Engine
from training.omniavatar.export import export, replaced
from training.report import LOG_FILES
from training.state import TrainState

logger = logging.getLogger(__name__)
ORIGIN = "origin.json"
FORMAT_VERSION = 2
"""Of checkpoints. Version 1 (up to commit 35d976c) has other names for `TrainState.suspects` and `fault_tolerance`."""
BEST, NUMBERED = "best", "adapters"
EXPORTS = ("adapter", "base", BEST, NUMBERED)
UNIVERSAL = "universal-"
"""Prefix of a checkpoint converted for another number of ranks; removed when the next one is saved."""


class Checkpoints:
    """The checkpoints of one training, below `folder`. Methods are called by all ranks together."""

    def __init__(self, folder: Path, engine: Engine, config: CheckpointConfig, model: ModelConfig) -> None:
        self.folder = folder
        self.state_folder = folder / "state"
        self.exported = folder / ("base" if model.plain else "adapter")
        self.engine = engine
        self.config = config
        self.model = model

    def load(self) -> TrainState:
        """Load weights and optimizer from the latest checkpoint, saved by any number of ranks; returns the state.

        With the same number of ranks the training resumes bit for bit, with another to rounding. Raises
        ConversionError, DiskFullError, FormatVersionError; DamagedFileError, which names an older one that is whole.
        """
        tag = latest_checkpoint(self.state_folder)
        if not tag:
            return TrainState()
        version = read_format_version(
            self.state_folder / tag, FORMAT_VERSION, f"delete {self.state_folder} to start again"
        )
        if sharded_over(self.state_folder / tag) in (0, self.engine.world):
            return _train_state(self.engine.load(self.state_folder, tag)["state"], version)
        universal = self.state_folder / f"{UNIVERSAL}{tag}"
        self._convert(self.state_folder / tag, universal)
        return _train_state(self.engine.load(self.state_folder, universal.name, universal=True)["state"], version)

    def _convert(self, checkpoint: Path, target: Path) -> None:
        if self.engine.rank == 0 and not target.exists():
            logger.info(
                "%s is sharded over %d ranks, %d were started: converting it once while the other ranks wait",
                checkpoint.name,
                sharded_over(checkpoint),
                self.engine.world,
            )
            to_universal(checkpoint, target)
        # Polled: a conversion takes minutes with many ranks, longer than a collective may wait.
        while not target.exists():
            time.sleep(0.2)

    def is_due(self, state: TrainState, saved: TrainState) -> bool:
        """Whether to save `state`, given the state `saved` last."""
        steps = (self.config.every_steps, self.config.export_every_steps)
        by_steps = any(every > 0 and state.step % every == 0 for every in steps)
        return by_steps or state.elapsed - saved.elapsed >= self.config.every_seconds > 0

    def save(self, state: TrainState) -> None:
        """Write a checkpoint and export the weights.

        Raises DiskFullError, and CheckpointError when the export differs from the trained weights; the previous
        checkpoint stays intact.
        """
        tag = f"step-{state.step:08d}"
        partial = self.state_folder / "partial"
        if self.engine.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self.state_folder.mkdir(parents=True, exist_ok=True)
        self.engine.wait()
        with disk_guard(partial):
            self.engine.save(self.state_folder, partial.name, {"state": asdict(state)})
        export(self.engine, self.exported, self.model, self.config.export_dtype)
        self.engine.wait()
        if self.engine.rank == 0:
            write_format_version(partial, FORMAT_VERSION)
            every = self.config.export_every_steps
            if every > 0 and state.step % every == 0:
                with replaced(self.folder / NUMBERED / tag) as beside:
                    shutil.copytree(self.exported, beside, dirs_exist_ok=True)
            write_parts(partial)
            self._publish(partial, tag)
        self.engine.wait()

    def repair_export(self) -> None:
        """Export the weights again where the export of the checkpoint that was loaded is gone or damaged."""
        problem = export_problem(self.exported)
        (broken,) = self.engine.from_first_rank(bool(problem))  # ranks that look later may see the new one
        if broken:
            if self.engine.rank == 0:
                logger.warning("%s: %s; it is exported again", self.exported, problem)
            export(self.engine, self.exported, self.model, self.config.export_dtype)
            self.engine.wait()

    def _publish(self, partial: Path, tag: str) -> None:
        for path in (*partial.rglob("*"), partial):
            sync(path)
        shutil.rmtree(self.state_folder / tag, ignore_errors=True)
        os.replace(partial, self.state_folder / tag)
        with atomic_write(self.state_folder / LATEST) as path:
            path.write_text(tag)
        for old in sorted(self.state_folder.glob("step-*"))[: -self.config.keep]:
            shutil.rmtree(old)
        # Also leftovers of a killed conversion, which have a leading dot.
        for converted in (*self.state_folder.glob(f"{UNIVERSAL}*"), *self.state_folder.glob(f".{UNIVERSAL}*")):
            shutil.rmtree(converted, ignore_errors=True)

    def save_best(self, state: TrainState, loss: float) -> TrainState:
        """Export the weights to `best/` when this held-out loss (the same on all ranks) is the lowest so far.

        Returns the state with the new best loss. Raises what `save` raises.
        """
        if not loss < (math.inf if state.best_loss is None else state.best_loss):  # also when it is NaN
            return state
        notes = {"best.json": {"step": state.step, "heldout_loss": loss}}
        export(self.engine, self.folder / BEST, self.model, self.config.export_dtype, notes)
        self.engine.wait()
        return replace(state, best_loss=loss, best_step=state.step)


def _train_state(saved: Mapping[str, Any], version: int) -> TrainState:
    """The state in a checkpoint of one version of the format."""
    if version == 1:  # has an older name for the suspects, the only name that changed
        names = {field.name for field in fields(TrainState)}
        saved = {name if name in names else "suspects": value for name, value in saved.items()}
    return TrainState(**saved)


def record_provenance(run: RunFolder, origin: Mapping[str, Any]) -> None:
    """Prepare `checkpoints/state/` for a training of this provenance; called by one rank, before any rank loads.

    `origin` (JSON values) is all that the result depends on: settings, hash of the base, digest of the shards. State,
    log and exports of a training of another origin are set aside, and restored when that origin is trained again.
    """
    state = run.checkpoints / "state"
    origin, before = plain(origin), None
    if (state / ORIGIN).exists():
        before = _renamed(read_json(state / ORIGIN), "survive.", "fault_tolerance.")
    if before is not None and before != origin:
        changed = [key for key in sorted(set(origin) | set(before)) if origin.get(key) != before.get(key)]
        logger.warning("Starting a new training: %s changed, the old state is set aside", ", ".join(changed))
        _move(LOG_FILES, run.logs, state)
        _move(EXPORTS, run.checkpoints, state)
        os.replace(state, aside(state, before))
    # Its folder is named by the fingerprint of its origin, with the key names of this or of format version 1.
    names = (origin, _renamed(origin, "fault_tolerance.", "survive."))
    waiting = [folder for folder in (aside(state, name) for name in names) if folder.exists()]
    if not state.exists() and waiting:
        os.replace(waiting[0], state)
        _move(LOG_FILES, state, run.logs)
        _move(EXPORTS, state, run.checkpoints)
    write_json(state / ORIGIN, origin)


def _renamed(origin: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same provenance with the keys of one section renamed."""
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in origin.items()}


def aside(state: Path, origin: Mapping[str, Any]) -> Path:
    """Folder of a training that was set aside while the run folder trains another."""
    return state.with_name(f"state-{fingerprint(origin)}")


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists():
            os.replace(source / name, target / name)
