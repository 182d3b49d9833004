"""Phases of one training, such as 480p first and then all sizes: what each changes, and when it is over.

Steps, optimizer, checkpoints and log go on across a border; the samples begin an epoch of their own. Which phase a
training is in stands in its state, so it is resumed in the right one.
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
    """A part of the configuration as it is in a phase."""
    own = {field.name for field in fields(config)}
    stated: dict[str, Any] = {name: v for name, v in vars(phase).items() if name not in RULES and v is not None}
    return replace(config, **{name: value for name, value in stated.items() if name in own})


def number_of_phase(state: TrainState) -> int:
    """The phase a training is in, from 0."""
    return len(state.phase_starts) - 1


def judged(state: TrainState, heldout_loss: float) -> TrainState:
    """The state after a validation: was it the lowest held-out loss of the phase?"""
    if state.phase_lowest is None or heldout_loss < state.phase_lowest:
        return replace(state, phase_lowest=heldout_loss, phase_stale=0)
    return replace(state, phase_stale=state.phase_stale + 1)


def handed_over(state: TrainState, phases: Sequence[Phase]) -> TrainState:
    """The state at the start of the next phase when the present one is over, else the same state."""
    number = number_of_phase(state)
    if number >= len(phases) - 1:
        return state
    phase, done = phases[number], state.step - state.phase_starts[-1]
    if 0 < phase.steps <= done or 0 < phase.patience <= state.phase_stale:
        starts = (*state.phase_starts, state.step)
        # What a usual loss is has to be learnt anew as well.
        return replace(state, phase_starts=starts, phase_lowest=None, phase_stale=0, losses=())
    return state
