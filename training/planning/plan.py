"""Forecast of a training before it starts: work, memory, time, traffic and disk, and whether it fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from omniavatar.config import Recompute
from omniavatar.planning.network import FLOAT, HALF, Network, Parameters, parameters
from training.config import EngineConfig, TrainConfig
from training.data.buckets import Bucket, window_bucket
from training.planning.devices import Device
from training.planning.fit import IN_ONE_MACHINE, Setting, faster_and_fits, smallest_change
from training.planning.flops import Work, work
from training.planning.memory import Memory
from training.planning.sizes import Clips, clips_to_train, network_to_train

USABLE = 0.92  # of a device's memory; the rest is for its context, communication and fragmentation
DAY = 86_400
NETWORK = 25e9  # bytes per second between machines


@dataclass(frozen=True)
class BucketPlan:
    """The windows of one shape: cost of a micro-batch of them on one rank."""

    bucket: Bucket
    clips: int
    batch: int
    tokens: int  # of one sample
    work: Work  # on one sample
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The forecast for one training. Times hold when `hfu` of the device's peak is reached."""

    config: TrainConfig
    network: Network
    parameters: Parameters
    device: Device
    clips: Clips
    ranks: int
    hfu: float
    buckets: tuple[BucketPlan, ...]
    micro_batches: int  # of a step; those of the recipe, raised to a multiple of the ranks that read data
    steps_per_epoch: int
    step_seconds: float  # of computing alone
    waiting: float  # share of a step in which ranks wait for one with a larger bucket
    received: int  # bytes that a rank receives in a step
    traffic_seconds: float  # to receive them; hidden behind the computing at best
    change: str  # the smallest with which it fits, "" when it does or when there is none
    faster: tuple[str, ...]  # changes that save time and still fit

    @property
    def largest(self) -> BucketPlan:
        """The bucket that needs most memory."""
        return max(self.buckets, key=lambda bucket: bucket.memory.total)

    @property
    def fits(self) -> bool:
        """Whether the largest bucket finds room on the device."""
        return self.largest.memory.total <= USABLE * self.device.memory

    @property
    def epoch_days(self) -> float:
        """Days of one epoch."""
        return self.steps_per_epoch * self.step_seconds / DAY

    @property
    def run_days(self) -> float:
        """Days until the recipe's limit."""
        by_steps = self.config.steps * self.step_seconds / DAY if self.config.steps else math.inf
        by_time = self.config.minutes * 60 / DAY if self.config.minutes else math.inf
        return min(by_steps, by_time)

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint on disk: trained weights and two moments, all ranks together."""
        return 3 * FLOAT * self.parameters.trained

    @property
    def export_bytes(self) -> int:
        """The export next to it; LoRA in three layouts, of which some lack the audio modules, under one percent."""
        layouts = 3 if self.config.model.variant == "lora" else 1
        return layouts * (FLOAT if self.config.checkpoint.export_dtype == "fp32" else HALF) * self.parameters.trained


def plan(config: TrainConfig, ranks: int, device: Device, shards: Path | None = None, hfu: float = 0.45) -> Plan:
    """Forecast `config` on `ranks` devices that reach the share `hfu` of their peak.

    `shards`: where the clips are; without an index there, the paper's are taken. Nothing is loaded.
    Raises InputError for a base of unknown sizes, and when none of the clips can be trained.
    """
    if not 0 < hfu <= 1:
        raise InputError(f"hfu is {hfu}; expected a share of the peak, above 0 and at most 1")
    if ranks < 1:
        raise InputError(f"ranks is {ranks}; expected at least 1")
    together = config.engine.sequence_parallel
    if ranks % together:
        raise InputError(f"ranks is {ranks}; expected a multiple of engine.sequence_parallel, {together}")
    clips = clips_to_train(shards, config.data.split)
    network = network_to_train(config.model, clips.audio_dim)
    size = parameters(network)
    buckets = tuple(_buckets(config, network, clips, ranks, hfu * device.flops))
    readers = ranks // together
    accumulation = -(-config.data.micro_batches // readers)
    mean, slowest = mean_and_slowest([(bucket.seconds, bucket.clips) for bucket in buckets], readers)
    weights = received(size, config.engine, ranks, accumulation)
    samples = sum(b.clips * b.batch * b.tokens for b in buckets) / sum(b.clips for b in buckets)
    shared = exchanged(network, config.engine, samples, config.model.gradient_checkpointing) * accumulation
    largest = max(buckets, key=lambda bucket: bucket.memory.total)
    room, now = USABLE * device.memory, _setting(config, largest, ranks)
    fits = largest.memory.total <= room
    return Plan(
        config=config,
        network=network,
        parameters=size,
        device=device,
        clips=clips,
        ranks=ranks,
        hfu=hfu,
        buckets=buckets,
        micro_batches=accumulation * readers,
        steps_per_epoch=math.ceil(sum(math.ceil(b.clips / b.batch) for b in buckets) / (accumulation * readers)),
        step_seconds=accumulation * slowest,
        waiting=1 - mean / slowest,
        received=weights + shared,
        traffic_seconds=_traffic_seconds(size, config.engine, ranks, weights, device)
        + shared / (device.link or math.inf),
        change="" if fits else smallest_change(network, now, room, config.data),
        faster=tuple(faster_and_fits(network, now, room, config.data)) if fits else (),
    )


def _buckets(config: TrainConfig, network: Network, clips: Clips, ranks: int, speed: float) -> Iterator[BucketPlan]:
    counts: dict[Bucket, int] = {}
    for size, count in clips.sizes.items():
        bucket = window_bucket(*size, config.data)
        if bucket.frames >= (1 if config.model.plain else 2):
            counts[bucket] = counts.get(bucket, 0) + count
    if not counts:
        raise InputError(
            f"no clip of {clips.source} has a window within {config.data.max_tokens} tokens; raise data.max_tokens"
        )
    for bucket, count in sorted(counts.items()):
        batch, tokens = min(config.data.batch, count), bucket.frames * _per_frame(bucket)
        cost = work(network, tokens, bucket.frames, clips.text, config.model.gradient_checkpointing)
        setting = Setting(
            config.engine, config.model.gradient_checkpointing, batch, ranks, bucket.frames, _per_frame(bucket)
        )
        seconds = batch * cost.executed / config.engine.sequence_parallel / speed
        yield BucketPlan(bucket, count, batch, tokens, cost, setting.memory(network), seconds)


def _setting(config: TrainConfig, largest: BucketPlan, ranks: int) -> Setting:
    bucket = largest.bucket
    mode = config.model.gradient_checkpointing
    return Setting(config.engine, mode, largest.batch, ranks, bucket.frames, _per_frame(bucket))


def _per_frame(bucket: Bucket) -> int:
    return (bucket.height // 2) * (bucket.width // 2)


def mean_and_slowest(times: list[tuple[float, int]], ranks: int) -> tuple[float, float]:
    """Of (seconds, count): the mean, and the expected maximum of `ranks` random draws."""
    total, behind, slowest = sum(count for _, count in times), 0, 0.0
    for seconds, count in sorted(times):
        slowest += seconds * (((behind + count) / total) ** ranks - (behind / total) ** ranks)
        behind += count
    return sum(seconds * count for seconds, count in times) / total, slowest


def received(size: Parameters, engine: EngineConfig, ranks: int, accumulation: int) -> int:
    """Bytes that a rank receives in one step of `accumulation` micro-batches.

    Stage 3 gathers all weights twice for each micro-batch, forward and backward, and sends gradients to their owners;
    the others reduce gradients once, each part at one rank, and send the sums or the weights back to all.
    """
    others, trained = (ranks - 1) / ranks, FLOAT * size.trained
    if engine.stage < 3:
        return round(others * 2 * trained)
    gathered = _gathered(size, engine) * accumulation
    near = (engine.hpz_ranks - 1) / engine.hpz_ranks if engine.hpz_ranks > 1 else others
    return round(near * gathered + others * accumulation * trained)


def _gathered(size: Parameters, engine: EngineConfig) -> int:
    """Bytes of all weights, once for the forward and once for the backward pass."""
    half = HALF if engine.frozen_dtype == "bf16" else FLOAT
    weights = FLOAT * size.frozen_fp32 + half * (size.frozen - size.frozen_fp32) + FLOAT * size.trained
    return 2 * weights


def exchanged(network: Network, engine: EngineConfig, tokens: float, recompute: Recompute) -> int:
    """Bytes that a rank receives for a micro-batch of `tokens` whose attention it shares with other ranks.

    Query, key, value and output of the attention, in each block, forward, backward and in recomputation.
    """
    others = (engine.sequence_parallel - 1) / engine.sequence_parallel
    own = tokens / engine.sequence_parallel * network.width * (HALF if engine.autocast == "bf16" else FLOAT)
    return round(others * 4 * own * network.layers * (2 if recompute == "none" else 3))


def _traffic_seconds(size: Parameters, engine: EngineConfig, ranks: int, weights: int, device: Device) -> float:
    link = device.link or math.inf
    if ranks <= IN_ONE_MACHINE:
        return weights / link
    if engine.hpz_ranks == 1:
        return weights / NETWORK
    # Weights are gathered within the machine, gradients travel between machines.
    near = (engine.hpz_ranks - 1) / engine.hpz_ranks * _gathered(size, engine)
    far = (ranks - 1) / ranks * FLOAT * size.trained
    return weights / (near + far) * (near / link + far / NETWORK)
