"""Phases of a training, such as 480p first and then all sizes: overrides of each, and transitions.

Steps, optimizer, checkpoints and log continue across phases; the samples start a new epoch. The current phase is part
of the state, so a training resumes in the right one.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from training.config import DataConfig, ObjectiveConfig, OptimizerConfig, Phase
from training.state import TrainState

Config = TypeVar("Config", DataConfig, ObjectiveConfig, OptimizerConfig)


RULES = ("name", "steps", "patience")
WHOLE = Phase("whole")
"""The only phase of a training without phases."""


def in_phase(config: Config, phase: Phase) -> Config:
    """A section of the configuration with the overrides of a phase."""
    own = {field.name for field in fields(config)}
    overrides: dict[str, Any] = {name: v for name, v in vars(phase).items() if name not in RULES and v is not None}
    return replace(config, **{name: value for name, value in overrides.items() if name in own})


def phase_number(state: TrainState) -> int:
    """Index of the current phase, from 0."""
    return len(state.phase_starts) - 1


def after_validation(state: TrainState, heldout_loss: float) -> TrainState:
    """The state after a validation, with the lowest held-out loss of the phase."""
    if state.phase_lowest is None or heldout_loss < state.phase_lowest:
        return replace(state, phase_lowest=heldout_loss, phase_stale=0)
    return replace(state, phase_stale=state.phase_stale + 1)


def next_phase(state: TrainState, phases: Sequence[Phase]) -> TrainState:
    """The state at the start of the next phase when the current one is over, else the same state."""
    number = phase_number(state)
    if number >= len(phases) - 1:
        return state
    phase, done = phases[number], state.step - state.phase_starts[-1]
    if 0 < phase.steps <= done or 0 < phase.patience <= state.phase_stale:
        starts = (*state.phase_starts, state.step)
        # The median loss that spikes are compared with starts over as well.
        return replace(state, phase_starts=starts, phase_lowest=None, phase_stale=0, losses=())
    return state
