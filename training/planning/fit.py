"""Which change of a training makes it fit into memory, and which would make it faster and still fit."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from omniavatar.config import Recompute
from training.config import DataConfig, EngineConfig
from training.planning.flops import Network
from training.planning.memory import Memory, memory

MODES: tuple[Recompute, ...] = ("none", "selective", "full")  # from fast to small
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)  # from little traffic to little memory
MOST_RANKS = 1024
IN_ONE_MACHINE = 8  # ranks


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
            *(
                (after != getattr(before.engine, field.name), f"engine.{field.name}={_said(after)}")
                for field in fields(EngineConfig)
                for after in [getattr(self.engine, field.name)]
            ),
            (self.batch != before.batch, f"data.batch={self.batch}"),
            (self.ranks != before.ranks, f"{self.ranks} ranks"),
            (self.frames != before.frames, f"data.max_tokens={min(data.max_tokens, self.frames * self.per_frame)}"),
        ]
        return ", ".join(words for differs, words in changed if differs)


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def smallest_change(network: Network, now: Setting, room: float, data: DataConfig) -> str:
    """The change with which a micro-batch fits into `room` bytes, "" when none does.

    In the order of what it costs: time (recompute, then shard), smaller micro-batches, bfloat16, waiting for the memory
    of the host, several ranks for each sample, more ranks, and last shorter windows, the only one that changes what the
    model sees.
    """
    for trial in _trials(network, now):
        if trial.memory(network).total <= room:
            return trial.changes(now, data)
    return ""


def _trials(network: Network, now: Setting) -> Iterator[Setting]:
    counts = [now.ranks * 2**power for power in range(11) if now.ranks * 2**power <= MOST_RANKS] or [now.ranks]
    for ranks in counts:
        for together in _together(network, now, ranks):
            sharing = replace(now, ranks=ranks, engine=replace(now.engine, sequence_parallel=together))
            for half in dict.fromkeys((sharing, _half(sharing))):
                yield from _smaller(half)
            for on_host in _on_host(_half(sharing)):
                yield from (replace(on_host, batch=batch) for batch in range(now.batch, 0, -1))
    smallest = _half(replace(now, engine=replace(now.engine, stage=3), mode="full", batch=1))
    for frames in range(now.frames - 1, 1, -1):
        yield replace(smallest, frames=frames)


def _smaller(now: Setting) -> Iterator[Setting]:
    later = MODES[MODES.index(now.mode) :] if now.mode in MODES else (now.mode,)
    for batch in range(now.batch, 0, -1):
        for stage in STAGES[now.engine.stage :]:
            for mode in later:
                yield replace(now, engine=replace(now.engine, stage=stage), mode=mode, batch=batch)


def _half(now: Setting) -> Setting:
    return replace(now, engine=replace(now.engine, autocast="bf16", frozen_dtype="bf16"))


def _on_host(now: Setting) -> Iterator[Setting]:
    """One after the other and all together: inputs of the blocks, optimizer, weights."""
    now = replace(now, mode="offload", engine=replace(now.engine, stage=3))
    yield now
    now = replace(now, engine=replace(now.engine, offload_optimizer=True))
    yield now
    yield replace(now, engine=replace(now.engine, offload_parameters=True))


def _together(network: Network, now: Setting, ranks: int) -> list[int]:
    """How many ranks may hold each sample together: those of one machine, heads dealt evenly."""
    least = now.engine.sequence_parallel
    return [n for n in range(least, IN_ONE_MACHINE + 1) if ranks % n == 0 and network.heads % n == 0 and n % least == 0]


def faster_and_fits(network: Network, now: Setting, room: float, data: DataConfig) -> Iterator[str]:
    """Changes that save work, or bytes sent between ranks or to the host, and still fit; each alone."""
    engine = now.engine
    modes = [replace(now, mode=mode) for mode in (MODES[: MODES.index(now.mode)] if now.mode in MODES else MODES)]
    # Stages 0 to 2 all receive the gradients alone; the lowest that fits is the simplest.
    whole = STAGES[:3] if engine.stage == 3 and now.ranks > 1 else ()
    without = replace(engine, offload_parameters=False, offload_optimizer=False, hpz_ranks=1, build="auto")
    stages = [replace(now, engine=replace(without, stage=stage)) for stage in whole]
    on_device = replace(now, engine=replace(engine, offload_parameters=False, offload_optimizer=False))
    alone = replace(now, engine=replace(engine, sequence_parallel=1))
    near = replace(now, engine=replace(engine, hpz_ranks=IN_ONE_MACHINE)) if engine.stage == 3 else now
    several_machines = now.ranks > IN_ONE_MACHINE and now.ranks % IN_ONE_MACHINE == 0 and engine.hpz_ranks == 1
    choices = [modes, stages, [on_device], [alone], [near] if several_machines else []]
    for alternatives in choices:
        fitting = [choice for choice in alternatives if choice != now and choice.memory(network).total <= room]
        yield from (choice.changes(now, data) for choice in fitting[:1])
