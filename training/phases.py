"""Phases of one training, such as 480p first and then all sizes: what each changes, and when it is over.

Steps, optimizer, checkpoints and log go on across a border; the samples begin an epoch of their own. Which phase a
training is in stands in its state, so it is resumed in the right one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from training.checkpoint import TrainState
from training.data import DataConfig
from training.objective import ObjectiveConfig
from training.optimizer import OptimizerConfig

Config = TypeVar("Config", DataConfig, ObjectiveConfig, OptimizerConfig)


@dataclass(frozen=True)
class Phase:
    """A part of a training. It is over after `steps`, or when `patience` validations in a row brought no new lowest
    held-out loss, whichever comes first; 0 = not by this rule. The last phase lasts to the end of the training.

    The other fields stand for those of the same name in `data`, `objective` and `optimizer`; None leaves them as they
    are.
    """

    name: str
    steps: int = 0
    patience: int = 0
    longest_side: int | None = None
    max_tokens: int | None = None
    durations: tuple[int, ...] | None = None
    first_reference: float | None = None
    audio_dropout: float | None = None
    text_dropout: float | None = None
    lr: float | None = None


RULES = ("name", "steps", "patience")
WHOLE = Phase("whole")
"""The only phase of a training without phases."""


def in_phase(config: Config, phase: Phase) -> Config:
    """A part of the configuration as it is in a phase."""
    own = {field.name for field in fields(config)}
    stated: dict[str, Any] = {name: v for name, v in vars(phase).items() if name not in RULES and v is not None}
    return replace(config, **{name: value for name, value in stated.items() if name in own})


def check_phases(phases: Sequence[Phase], validates: bool) -> None:
    """Raise ValueError for phases of which one would never end, or two have one name."""
    for number, phase in enumerate(phases):
        if phase.name in [other.name for other in phases[:number]]:
            raise ValueError(f"two phases are called '{phase.name}'; give each a name of its own")
        if phase.steps < 0 or phase.patience < 0:
            raise ValueError(
                f"phase '{phase.name}' has steps {phase.steps}, patience {phase.patience}; expected 0 or more"
            )
        last = number == len(phases) - 1
        if not last and not phase.steps and not phase.patience:
            raise ValueError(f"phase '{phase.name}' has no end, but another one follows; set its steps or its patience")
        if phase.patience and not last and not validates:
            raise ValueError(f"phase '{phase.name}' waits for the held-out loss; set validation.every above 0")


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
