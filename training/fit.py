"""Which change of a training makes it fit into memory, and which would make it faster and still fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from omniavatar.recompute import Recompute
from training.data import DataConfig
from training.engine import EngineConfig
from training.flops import Network
from training.memory import Memory, memory

MODES: tuple[Recompute, ...] = ("none", "selective", "full")  # from fast to small
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)  # from little traffic to little memory
MOST_RANKS = 1024


@dataclass(frozen=True)
class Setting:
    """All that decides how much memory a rank needs for windows of `frames` latent frames of `per_frame` tokens."""

    engine: EngineConfig
    mode: Recompute
    batch: int
    ranks: int
    frames: int
    per_frame: int

    def memory(self, network: Network) -> Memory:
        """What a rank holds at the height of a step."""
        return memory(network, self.batch * self.frames * self.per_frame, self.engine, self.mode, self.ranks)

    def changes(self, before: "Setting", data: DataConfig) -> str:
        """What a recipe has to say to come here from `before`."""
        changed = [
            (self.mode != before.mode, f"model.gradient_checkpointing={self.mode}"),
            (self.engine.stage != before.engine.stage, f"engine.stage={self.engine.stage}"),
            (self.batch != before.batch, f"data.batch={self.batch}"),
            (self.engine.autocast != before.engine.autocast, f"engine.autocast={self.engine.autocast}"),
            (self.engine.frozen_dtype != before.engine.frozen_dtype, f"engine.frozen_dtype={self.engine.frozen_dtype}"),
            (self.ranks != before.ranks, f"{self.ranks} ranks"),
            (self.frames != before.frames, f"data.max_tokens={min(data.max_tokens, self.frames * self.per_frame)}"),
        ]
        return ", ".join(words for differs, words in changed if differs)


def smallest_change(network: Network, now: Setting, room: float, data: DataConfig) -> str:
    """The change with which a micro-batch fits into `room` bytes, "" when none does.

    In the order of what it costs: time (recompute, then shard), smaller micro-batches, bfloat16, more ranks, and last
    shorter windows, the only one that changes what the model sees.
    """
    for trial in _trials(now):
        if trial.memory(network).total <= room:
            return trial.changes(now, data)
    return ""


def _trials(now: Setting) -> Iterator[Setting]:
    half = replace(now.engine, autocast="bf16", frozen_dtype="bf16")
    counts = [now.ranks * 2**power for power in range(11) if now.ranks * 2**power <= MOST_RANKS] or [now.ranks]
    batches = list(range(now.batch, 0, -1))
    for ranks in counts:
        for engine in dict.fromkeys((now.engine, half)):
            for batch in batches:
                for stage in STAGES[now.engine.stage :]:
                    for mode in MODES[MODES.index(now.mode) :]:
                        sharded = replace(engine, stage=stage)
                        yield replace(now, engine=sharded, mode=mode, batch=batch, ranks=ranks)
    smallest = replace(now, engine=replace(half, stage=3), mode="full", batch=1)
    for frames in range(now.frames - 1, 1, -1):
        yield replace(smallest, frames=frames)


def faster_and_fits(network: Network, now: Setting, room: float, data: DataConfig) -> Iterator[str]:
    """Changes that save work, or weights sent between ranks, and still fit; each alone."""
    modes = [replace(now, mode=mode) for mode in MODES[: MODES.index(now.mode)]]
    # Stages 0 to 2 all receive the gradients alone; the lowest that fits is the simplest.
    whole = STAGES[:3] if now.engine.stage == 3 and now.ranks > 1 else ()
    stages = [replace(now, engine=replace(now.engine, stage=stage)) for stage in whole]
    for choices in (modes, stages):
        fitting = [choice for choice in choices if choice.memory(network).total <= room]
        yield from (choice.changes(now, data) for choice in fitting[:1])
