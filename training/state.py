"""State of a training beside its weights and moments."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainState:
    """The whole state of a training beside weights and optimizer. `step` is also the position in the data."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training, over all restarts
    skipped: int = 0  # steps that were not taken: out of line, or a gradient that was not finite
    skipped_in_a_row: int = 0
    bad: tuple[str, ...] = ()  # clips that could not be read and were replaced
    losses: tuple[float, ...] = ()  # of the last steps that were taken
    suspects: dict[str, int] = field(default_factory=dict)  # clip -> steps that were not taken because of it
    quarantined: tuple[str, ...] = ()  # clips that are used no more
    phase_starts: tuple[int, ...] = (0,)  # first step of each phase so far
    phase_lowest: float | None = None  # held-out loss of this phase
    phase_stale: int = 0  # validations since then
    best_loss: float | None = None  # lowest held-out loss so far, and its step: what `best/` holds
    best_step: int = 0
