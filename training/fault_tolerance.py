"""Fault tolerance: skipped loss spikes, suspect clips, and clips quarantined permanently.

Every decision is a function of numbers that all ranks share and of the state in the checkpoint: ranks agree, and a
resumed training decides as an uninterrupted one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from common.errors import UserError
from training.config import FaultToleranceConfig
from training.data.windows import BadSamplesError
from training.state import TrainState

MAX_CONSECUTIVE_SKIPS = 10
MAX_QUARANTINED = 1_000
MAX_SUSPECTS = 10_000  # clips with strikes that are not quarantined yet; the oldest are dropped first


class TrainingDivergedError(UserError, RuntimeError):
    """Too many consecutive steps were skipped, or too many clips quarantined."""


def is_spike(loss: float, history: Sequence[float], config: FaultToleranceConfig) -> bool:
    """Whether the mean loss of a step exceeds `spike` times the median of `history`; not where it is not finite."""
    if config.spike == 0 or len(history) < max(1, config.history // 2):
        return False
    return config.spike * statistics.median(history) < loss < math.inf


def worst_clip(losses: Mapping[str, float]) -> str | None:
    """The clip of the largest loss, non-finite ones first; None when no loss is finite: then the weights are broken."""
    if not any(math.isfinite(loss) for loss in losses.values()):
        return None
    return max(losses, key=lambda clip: (not math.isfinite(losses[clip]), losses[clip]))


def skip_reason(
    state: TrainState, loss: float, losses: Mapping[str, float], config: FaultToleranceConfig
) -> dict[str, str | float | None]:
    """For the log: why the step after `state` was skipped, its mean loss, the median loss, and the worst clip."""
    return {
        "reason": "spike" if is_spike(loss, state.losses, config) else "not finite",
        "loss": loss,
        "usual_loss": statistics.median(state.losses) if state.losses else None,
        "worst": worst_clip(losses),
    }


def step_taken(state: TrainState, loss: float, config: FaultToleranceConfig) -> TrainState:
    """The state after an optimizer step."""
    return replace(state, step=state.step + 1, skipped_in_a_row=0, losses=(*state.losses, loss)[-config.history :])


def step_skipped(state: TrainState, losses: Mapping[str, float], config: FaultToleranceConfig) -> TrainState:
    """The state after a skipped step, from the loss of each of its clips, over all ranks.

    Raises TrainingDivergedError.
    """
    in_a_row = state.skipped_in_a_row + 1
    if in_a_row == MAX_CONSECUTIVE_SKIPS:
        raise TrainingDivergedError(
            f"{in_a_row} consecutive steps up to {state.step + 1} had a loss spike or a gradient that is not finite; "
            "look at their clips in logs/skipped.jsonl, lower optimizer.lr, and resume from the last checkpoint"
        )
    state = replace(state, step=state.step + 1, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)
    clip = worst_clip(losses)
    return state if clip is None else _suspect(state, clip, config.quarantine_after)


def with_unreadable(state: TrainState, clip: str, limit: int) -> TrainState:
    """The state with one more unreadable clip. Raises BadSamplesError for more than `limit`."""
    if len(state.bad) >= limit:
        raise BadSamplesError(
            f"{len(state.bad) + 1} clips cannot be read, data.max_bad is {limit}; look at logs/bad_samples.jsonl, and "
            "run the latents job again or raise data.max_bad"
        )
    return replace(state, bad=(*state.bad, clip))


def _suspect(state: TrainState, clip: str, limit: int) -> TrainState:
    others = {name: strikes for name, strikes in state.suspects.items() if name != clip}
    strikes = state.suspects.get(clip, 0) + 1
    if strikes < limit:
        return replace(state, suspects=dict([*others.items(), (clip, strikes)][-MAX_SUSPECTS:]))
    if len(state.quarantined) == MAX_QUARANTINED:
        raise TrainingDivergedError(
            f"{MAX_QUARANTINED} clips were quarantined for skipped steps, and {clip} would be one more; "
            "so many clips are not the cause: look at logs/skipped.jsonl, lower optimizer.lr, check the shards"
        )
    return replace(state, suspects=others, quarantined=(*state.quarantined, clip))
