"""Which steps are not taken, which clip is to blame, and when a clip is left out for good.

All of it is a function of numbers that every rank has, and of the state in the checkpoint: ranks agree, and a training
that goes on decides as one that never stopped.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from common.errors import UserError
from training.config import FaultToleranceConfig
from training.data.windows import BadSamplesError
from training.state import TrainState

MOST_SKIPS_IN_A_ROW = 10
MOST_QUARANTINED = 1_000
MOST_SUSPECTS = 10_000  # clips that were blamed and not yet left out; the oldest are forgiven first


class TrainingDivergedError(UserError, RuntimeError):
    """Too many steps in a row, or too many clips, had to be left out."""


def is_spike(loss: float, history: Sequence[float], config: FaultToleranceConfig) -> bool:
    """Whether a step of this mean loss is out of line with those before it. A loss that is not finite is no spike."""
    if config.spike == 0 or len(history) < max(1, config.history // 2):
        return False
    return config.spike * statistics.median(history) < loss < math.inf


def worst_clip(losses: Mapping[str, float]) -> str | None:
    """The clip of the largest loss, one that is not finite before all; None when none is: then it is the weights."""
    if not any(math.isfinite(loss) for loss in losses.values()):
        return None
    return max(losses, key=lambda clip: (not math.isfinite(losses[clip]), losses[clip]))


def why_skipped(
    state: TrainState, loss: float, losses: Mapping[str, float], config: FaultToleranceConfig
) -> dict[str, str | float | None]:
    """For the log: why the step after `state` was not taken, its mean loss, the usual one, and the worst clip."""
    return {
        "reason": "spike" if is_spike(loss, state.losses, config) else "not finite",
        "loss": loss,
        "usual_loss": statistics.median(state.losses) if state.losses else None,
        "worst": worst_clip(losses),
    }


def step_taken(state: TrainState, loss: float, config: FaultToleranceConfig) -> TrainState:
    """The state after a step that was taken."""
    return replace(state, step=state.step + 1, skipped_in_a_row=0, losses=(*state.losses, loss)[-config.history :])


def step_skipped(state: TrainState, losses: Mapping[str, float], config: FaultToleranceConfig) -> TrainState:
    """The state after a step that was not taken, from the loss of each of its clips, over all ranks.

    Raises TrainingDivergedError.
    """
    in_a_row = state.skipped_in_a_row + 1
    if in_a_row == MOST_SKIPS_IN_A_ROW:
        raise TrainingDivergedError(
            f"{in_a_row} steps in a row up to {state.step + 1} had a loss out of line or a gradient not finite; "
            "look at their clips in logs/skipped.jsonl, lower optimizer.lr, and start again from the last checkpoint"
        )
    state = replace(state, step=state.step + 1, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)
    clip = worst_clip(losses)
    return state if clip is None else _blame(state, clip, config.quarantine_after)


def found_bad(state: TrainState, clip: str, most: int) -> TrainState:
    """The state after a clip was found that cannot be read. Raises BadSamplesError for more than `most`."""
    if len(state.bad) >= most:
        raise BadSamplesError(
            f"{len(state.bad) + 1} clips cannot be read, data.max_bad is {most}; look at logs/bad_samples.jsonl, and "
            "run the latents job again or raise data.max_bad"
        )
    return replace(state, bad=(*state.bad, clip))


def _blame(state: TrainState, clip: str, limit: int) -> TrainState:
    blamed = {name: times for name, times in state.suspects.items() if name != clip}
    times = state.suspects.get(clip, 0) + 1
    if times < limit:
        return replace(state, suspects=dict([*blamed.items(), (clip, times)][-MOST_SUSPECTS:]))
    if len(state.quarantined) == MOST_QUARANTINED:
        raise TrainingDivergedError(
            f"{MOST_QUARANTINED} clips were left out for steps that could not be taken, and {clip} would be one more; "
            "that is not the clips: look at logs/skipped.jsonl, lower optimizer.lr, check the shards"
        )
    return replace(state, suspects=blamed, quarantined=(*state.quarantined, clip))
