"""Checkpoints: what it takes to go on exactly (`checkpoints/state/`) and what others load (`export`).

A checkpoint is written beside and renamed; the file `latest` is switched last. So a kill or a full disk at any moment
leaves the one before. Frozen weights are not in it: the base is named by its hash in `origin.json`.

Exports below `checkpoints/`: `adapter/` (or `base/`) of the last checkpoint, `best/` of the lowest held-out loss so far
with `best.json`, and `adapters/step-<n>/` of every so many steps, of which none is ever removed.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from training.config import CheckpointConfig, ModelConfig
from training.engine.universal import sharded_over, to_universal
from training.engine.zero import Engine
from training.omniavatar.export import export, replaced
from training.report import LOG_FILES
from training.state import TrainState

logger = logging.getLogger(__name__)
ORIGIN = "origin.json"
FORMAT_VERSION = 2
"""Version 1 (up to commit 35d976c) calls the suspects of a `TrainState` "blamed", and `fault_tolerance` "survive"."""
BEST, NUMBERED = "best", "adapters"
EXPORTS = ("adapter", "base", BEST, NUMBERED)
UNIVERSAL = "universal-"
"""Before a checkpoint's name: the same checkpoint for any number of ranks, until the next one is saved."""


class Checkpoints:
    """The checkpoints of one training, below `folder`. Methods are called by all ranks together."""

    def __init__(self, folder: Path, engine: Engine, config: CheckpointConfig, model: ModelConfig) -> None:
        self.folder = folder
        self.state_folder = folder / "state"
        self.engine = engine
        self.config = config
        self.model = model

    def load(self) -> TrainState:
        """Bring weights and optimizer to the latest checkpoint, whatever the number of ranks that saved it.

        At the same number the training goes on bit for bit, at another to rounding. Raises ConversionError,
        DiskFullError, FormatVersionError.
        """
        latest = self.state_folder / "latest"
        if not latest.exists():
            return TrainState()
        tag = latest.read_text()
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
                "%s is sharded over %d ranks and %d were started: it is made over once, the other ranks wait",
                checkpoint.name,
                sharded_over(checkpoint),
                self.engine.world,
            )
            to_universal(checkpoint, target)
        # Not in a collective, whose time is limited: with many ranks a conversion takes minutes.
        while not target.exists():
            time.sleep(0.2)

    def is_due(self, state: TrainState, saved: TrainState) -> bool:
        """Whether a state should be saved, when `saved` is the last that was."""
        steps = (self.config.every_steps, self.config.export_every_steps)
        by_steps = any(every > 0 and state.step % every == 0 for every in steps)
        return by_steps or state.elapsed - saved.elapsed >= self.config.every_seconds > 0

    def save(self, state: TrainState) -> None:
        """Write a checkpoint and export the weights.

        Raises DiskFullError, and CheckpointError when the export does not hold what was trained; the last checkpoint
        stays whole.
        """
        tag = f"step-{state.step:08d}"
        partial = self.state_folder / "partial"
        if self.engine.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self.state_folder.mkdir(parents=True, exist_ok=True)
        self.engine.wait()
        with disk_guard(partial):
            self.engine.save(self.state_folder, partial.name, {"state": asdict(state)})
        exported = self.folder / ("base" if self.model.plain else "adapter")
        export(self.engine, exported, self.model, self.config.export_dtype)
        self.engine.wait()
        if self.engine.rank == 0:
            write_format_version(partial, FORMAT_VERSION)
            every = self.config.export_every_steps
            if every > 0 and state.step % every == 0:
                with replaced(self.folder / NUMBERED / tag) as beside:
                    shutil.copytree(exported, beside, dirs_exist_ok=True)
            self._publish(partial, tag)
        self.engine.wait()

    def _publish(self, partial: Path, tag: str) -> None:
        for path in (*partial.rglob("*"), partial):
            sync(path)
        shutil.rmtree(self.state_folder / tag, ignore_errors=True)
        os.replace(partial, self.state_folder / tag)
        with atomic_write(self.state_folder / "latest") as path:
            path.write_text(tag)
        for old in sorted(self.state_folder.glob("step-*"))[: -self.config.keep]:
            shutil.rmtree(old)
        # With what a killed conversion left, which has a dot before its name.
        for converted in (*self.state_folder.glob(f"{UNIVERSAL}*"), *self.state_folder.glob(f".{UNIVERSAL}*")):
            shutil.rmtree(converted, ignore_errors=True)

    def save_best(self, state: TrainState, loss: float) -> TrainState:
        """Export the weights to `best/` when this held-out loss (the same on all ranks) is the lowest so far.

        Gives the state that knows it; a training that goes on from before this step comes here again. Raises as `save`.
        """
        if not loss < (math.inf if state.best_loss is None else state.best_loss):  # also when it is not a number
            return state
        notes = {"best.json": {"step": state.step, "heldout_loss": loss}}
        export(self.engine, self.folder / BEST, self.model, self.config.export_dtype, notes)
        self.engine.wait()
        return replace(state, best_loss=loss, best_step=state.step)


def _train_state(saved: Mapping[str, Any], version: int) -> TrainState:
    """The state in a checkpoint of one version of the format."""
    if version == 1:
        saved = {"suspects" if name == "blamed" else name: value for name, value in saved.items()}
    return TrainState(**saved)


def record_provenance(run: RunFolder, origin: Mapping[str, Any]) -> None:
    """Make `checkpoints/state/` the place of this training; by one rank, before any loads.

    `origin` (JSON values) says what the result depends on: settings, hash of the base, digest of the shards. State,
    log and exports of a training of other origin are set aside, not lost: they come back when its origin does.
    """
    state = run.checkpoints / "state"
    origin, before = plain(origin), None
    if (state / ORIGIN).exists():
        before = _renamed(read_json(state / ORIGIN), "survive.", "fault_tolerance.")
    if before is not None and before != origin:
        changed = [key for key in sorted(set(origin) | set(before)) if origin.get(key) != before.get(key)]
        logger.warning("Training starts afresh: %s changed, the old state is set aside", ", ".join(changed))
        _hand_over(LOG_FILES, run.logs, state)
        _hand_over(EXPORTS, run.checkpoints, state)
        os.replace(state, aside(state, before))
    # Set aside by this code, or by code of format version 1.
    names = (origin, _renamed(origin, "fault_tolerance.", "survive."))
    waiting = [folder for folder in (aside(state, name) for name in names) if folder.exists()]
    if not state.exists() and waiting:
        os.replace(waiting[0], state)
        _hand_over(LOG_FILES, state, run.logs)
        _hand_over(EXPORTS, state, run.checkpoints)
    write_json(state / ORIGIN, origin)


def _renamed(origin: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same provenance with another prefix before the keys of one section."""
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in origin.items()}


def aside(state: Path, origin: Mapping[str, Any]) -> Path:
    """Where the state of a training waits while the run folder trains something else."""
    return state.with_name(f"state-{fingerprint(origin)}")


def _hand_over(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists():
            os.replace(source / name, target / name)
