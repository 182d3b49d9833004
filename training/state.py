"""State of a training other than weights and optimizer moments."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainState:
    """State that a checkpoint holds besides weights and optimizer. `step` is also the position in the data."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training, over all restarts
    skipped: int = 0  # steps without an update: a loss spike, or a gradient that was not finite
    skipped_in_a_row: int = 0
    bad: tuple[str, ...] = ()  # clips that could not be read and were replaced
    losses: tuple[float, ...] = ()  # of the last steps that were not skipped
    suspects: dict[str, int] = field(default_factory=dict)  # clip -> skipped steps in which its loss was the worst
    quarantined: tuple[str, ...] = ()  # clips that are not used any more
    phase_starts: tuple[int, ...] = (0,)  # first step of each phase so far
    phase_lowest: float | None = None  # lowest held-out loss of this phase
    phase_stale: int = 0  # validations since then
    best_loss: float | None = None  # lowest held-out loss so far, and its step: what `best/` holds
    best_step: int = 0
