"""Search for the smallest change with which a training fits into memory, and for faster settings that still fit."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from omniavatar.config import Recompute
from omniavatar.planning.network import Network
from training.config import DataConfig, EngineConfig
from training.planning.memory import Memory, memory

MODES: tuple[Recompute, ...] = ("none", "selective", "full")  # from fastest to least memory
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)  # from least traffic to least memory
MAX_RANKS = 1024
IN_ONE_MACHINE = 8  # ranks


@dataclass(frozen=True)
class Setting:
    """Settings that determine a rank's memory for windows of `frames` latent frames of `per_frame` tokens."""

    engine: EngineConfig
    mode: Recompute
    batch: int
    ranks: int
    frames: int
    per_frame: int

    def memory(self, network: Network) -> Memory:
        """Memory of a rank at the peak of a step."""
        return memory(network, self.batch * self.frames * self.per_frame, self.engine, self.mode, self.ranks)

    def changes(self, before: "Setting", data: DataConfig) -> str:
        """The recipe settings that differ from those of `before`."""
        changed = [
            (self.mode != before.mode, f"model.gradient_checkpointing={self.mode}"),
            *(
                (after != getattr(before.engine, field.name), f"engine.{field.name}={_yaml(after)}")
                for field in fields(EngineConfig)
                for after in [getattr(self.engine, field.name)]
            ),
            (self.batch != before.batch, f"data.batch={self.batch}"),
            (self.ranks != before.ranks, f"{self.ranks} ranks"),
            (self.frames != before.frames, f"data.max_tokens={min(data.max_tokens, self.frames * self.per_frame)}"),
        ]
        return ", ".join(setting for differs, setting in changed if differs)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def smallest_change(network: Network, now: Setting, room: float, data: DataConfig) -> str:
    """The change with which a micro-batch fits into `room` bytes, "" when none does.

    In the order of their cost: time (recompute, then shard), smaller micro-batches, bfloat16, offload to the host,
    several ranks for each sample, more ranks, and last shorter windows, the only one that changes what is trained.
    """
    for trial in _trials(network, now):
        if trial.memory(network).total <= room:
            return trial.changes(now, data)
    return ""


def _trials(network: Network, now: Setting) -> Iterator[Setting]:
    counts = [now.ranks * 2**power for power in range(11) if now.ranks * 2**power <= MAX_RANKS] or [now.ranks]
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
    """Offload to the host, cumulatively: inputs of the blocks, then the optimizer, then weights."""
    now = replace(now, mode="offload", engine=replace(now.engine, stage=3))
    yield now
    now = replace(now, engine=replace(now.engine, offload_optimizer=True))
    yield now
    yield replace(now, engine=replace(now.engine, offload_parameters=True))


def _together(network: Network, now: Setting, ranks: int) -> list[int]:
    """How many ranks may share each sample: at most those of one machine, with attention heads divided evenly."""
    least = now.engine.sequence_parallel
    return [n for n in range(least, IN_ONE_MACHINE + 1) if ranks % n == 0 and network.heads % n == 0 and n % least == 0]


def faster_and_fits(network: Network, now: Setting, room: float, data: DataConfig) -> Iterator[str]:
    """Changes that save work, or bytes sent between ranks or to the host, and still fit; each alone."""
    for candidates in _faster(now):
        # Candidates are ordered from fastest to slowest, so the first that fits is the one to name.
        for candidate in candidates:
            if candidate != now and candidate.memory(network).total <= room:
                yield candidate.changes(now, data)
                break


def _faster(now: Setting) -> Iterator[list[Setting]]:
    """For each kind of cost, the settings that would lower it, the fastest first."""
    engine = now.engine

    # Less recomputation; from "offload" every mode that stays on the device is faster.
    faster_modes = MODES[: MODES.index(now.mode)] if now.mode in MODES else MODES
    yield [replace(now, mode=mode) for mode in faster_modes]

    # No gathering of weights: stages 0 to 2 exchange gradients only, so the lowest that fits is the simplest.
    if engine.stage == 3 and now.ranks > 1:
        unsharded = replace(engine, offload_parameters=False, offload_optimizer=False, hpz_ranks=1, build="auto")
        yield [replace(now, engine=replace(unsharded, stage=stage)) for stage in STAGES[:3]]

    # No transfers between device and host.
    yield [replace(now, engine=replace(engine, offload_parameters=False, offload_optimizer=False))]

    # No exchange inside the attention.
    yield [replace(now, engine=replace(engine, sequence_parallel=1))]

    # With several machines: gather weights from a second copy inside each, instead of over the network.
    several_machines = now.ranks > IN_ONE_MACHINE and now.ranks % IN_ONE_MACHINE == 0
    if engine.stage == 3 and several_machines and engine.hpz_ranks == 1:
        yield [replace(now, engine=replace(engine, hpz_ranks=IN_ONE_MACHINE))]
