"""START HERE. The training of one model: build it, loop over steps, save.

`python -m training.train --run RUN` reads RUN/train.yaml and goes on from the newest checkpoint in RUN/checkpoints. One
process trains alone; several are started by `training.launch` or by torchrun, and do the same thing together.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.progress import setup_logging
from common.recipe import load_recipe
from common.runs import RunFolder, hash_path
from training.checkpoint import CheckpointConfig, Checkpoints, TrainState, adapter_config, adopt_origin
from training.data import ClipWindows, DataConfig, MicroBatch, index_digest, stream
from training.devices import peak_memory, peak_of
from training.engine import Engine, EngineConfig, StepResult, join_group, leave_group
from training.flops import PATCH, Work, network_of, work
from training.model import ModelConfig, build_model
from training.objective import ObjectiveConfig, draw, make_batch, sample_losses
from training.optimizer import OptimizerConfig, build_optimizer, learning_rate
from training.report import Report
from training.validate import HeldOut, ValidationConfig
from training.worker import end_with_launcher, tell_failure

logger = logging.getLogger(__name__)
MOST_SKIPS_IN_A_ROW = 10
stop_asked = threading.Event()
"""Set from a signal: the training saves after the step it is in, and ends."""


@dataclass(frozen=True)
class TrainConfig:
    """One training. `shards` empty means the run's own.

    It ends after `steps` or `minutes`, whichever comes first; 0 = no limit of that kind.
    """

    shards: Path = Path()
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    steps: int = 20_000
    minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise ValueError(f"steps is {self.steps} and minutes is {self.minutes}; set one of them above 0")


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a gradient that is not finite."""


class Trainer:
    """Everything one rank holds. `run` trains to the limit."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        shards = run.shards if config.shards == Path() else config.shards
        plain = config.model.plain
        self.config = config
        self.windows = ClipWindows(shards, config.data, config.seed, shortest=1 if plain else 2)
        model = build_model(config.model, self.windows.audio_dim, config.engine.frozen_dtype, config.seed)
        rank = config.model.lora_rank if plain else adapter_config(config.model).rank
        self.network = network_of(model.dit.config, config.model.variant, rank, model.audio_entry, model.audio_dim)
        self.engine = Engine(model, build_optimizer(model, config.optimizer), config.data.micro_batches, config.engine)
        if self.engine.rank == 0:
            adopt_origin(run, origin(config, shards))
        self.engine.wait()
        self.held_out: HeldOut | None = None
        if config.validation.every:
            windows = ClipWindows(shards, replace(config.data, split=config.validation.split), config.seed, 2)
            self.held_out = HeldOut(windows, config.validation, config.objective, plain)
        half = config.engine.autocast == "bf16"
        self.peak = peak_of(self.engine.device, torch.bfloat16 if half else torch.float32)
        self.checkpoints = Checkpoints(run.checkpoints, self.engine, config.checkpoint)
        self.state = self.saved = self.checkpoints.load()
        self.started = time.monotonic() - self.state.elapsed
        self.report = Report(run.logs, self.engine.rank == 0, self.state.step, self._total(), self._done())
        self.stop_asked = False

    def run(self) -> None:
        """Train to the limit, saving on the way and at the end. Raises TrainingDivergedError, DiskFullError."""
        steps = stream(self.windows, self.state.step, self.engine.rank, self.engine.world)
        with self.report:
            while self.progress() < 1 and not self.stop_asked:
                numbers = self.train_step(steps)
                if self.held_out and self.state.step % self.config.validation.every == 0:
                    numbers |= self.held_out.losses(self.engine)
                self.report.step(self._done(), numbers)
                if self.save_is_due():
                    self.save()
            if self.state != self.saved:
                self.save()

    def train_step(self, steps: Iterator[list[MicroBatch]]) -> dict[str, Any]:
        """One optimizer step over this rank's micro-batches; its numbers for the log."""
        began = time.monotonic()
        micro_batches = next(steps)
        waited = time.monotonic() - began
        lr = learning_rate(self.config.optimizer, self.state.step, self.progress())
        loss = samples = tokens = asked = executed = 0.0
        for micro in micro_batches:
            losses = self.losses(micro)
            # Divided by the nominal size: every sample weighs the same, also those of a short micro-batch.
            self.engine.backward(losses.sum() / self.config.data.batch)
            result = self.engine.step(lr)
            loss += losses.sum().item()
            samples += len(losses)
            tokens += sum(sample.latents[0].numel() // PATCH for sample in micro.samples)
            cost = self.work(micro)
            asked, executed = asked + cost.step * len(losses), executed + cost.executed * len(losses)
        loss, samples, tokens, asked, executed = self.engine.total(loss, samples, tokens, asked, executed)
        self._advance(result)
        seconds = time.monotonic() - began
        possible = seconds * self.engine.world * self.peak.flops
        return {
            "step": self.state.step,
            "loss": loss / samples,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
            "data_wait": waited,
            "data_wait_share": waited / seconds,
            "mfu": asked / possible,
            "hfu": executed / possible,
            "peak_tflops": self.peak.flops / 1e12,
            "peak_source": self.peak.source,
            "peak_memory": peak_memory(self.engine.device),
            "skipped": self.state.skipped,
        }

    def losses(self, micro: MicroBatch) -> Tensor:
        """Loss of each sample (B,) of a micro-batch, its chance drawn from its position."""
        objective, constants = self.config.objective, self.windows.constants
        pairs = zip(micro.samples, micro.positions, strict=True)
        draws = [draw(objective, self.config.seed, position, sample) for sample, position in pairs]
        batch = make_batch(micro, draws, constants.empty_text, constants.text_length, self.config.model.plain)
        return sample_losses(self.engine, batch.to(self.engine.device), objective)

    def work(self, micro: MicroBatch) -> Work:
        """The work of each sample of a micro-batch; all have one shape."""
        latents = micro.samples[0].latents
        text, recompute = self.windows.constants.text_length, self.config.model.gradient_checkpointing
        return work(self.network, latents[0].numel() // PATCH, latents.shape[1], text, recompute)

    def progress(self) -> float:
        """How much of the run lies behind, 0 to 1, by the limit that is nearer."""
        by_steps = self.state.step / self.config.steps if self.config.steps else 0.0
        by_time = self.state.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(by_steps, by_time)

    def save_is_due(self) -> bool:
        """Every so many steps or seconds."""
        when = self.config.checkpoint
        by_steps = when.every_steps > 0 and self.state.step % when.every_steps == 0
        return by_steps or self.state.elapsed - self.saved.elapsed >= when.every_seconds > 0

    def save(self) -> None:
        """Write a checkpoint of this moment, and the export."""
        self.checkpoints.save(self.state, self.config.model)
        self.report.flush()
        self.saved = self.state

    def _advance(self, result: StepResult) -> None:
        # The first rank's clock and its signal decide for all, or the ranks would part at a limit.
        elapsed, stop = self.engine.from_first_rank(time.monotonic() - self.started, stop_asked.is_set())
        self.stop_asked = bool(stop)
        if result.skipped:
            self.report.skipped(self.state.step + 1, self.windows.clips_of_step(self.state.step))
        in_a_row = self.state.skipped_in_a_row + 1 if result.skipped else 0
        if in_a_row == MOST_SKIPS_IN_A_ROW:
            raise TrainingDivergedError(
                f"{in_a_row} steps in a row up to {self.state.step + 1} had a gradient that is not finite; look at "
                "their clips in logs/skipped.jsonl, lower optimizer.lr, and start again from the last checkpoint"
            )
        skipped = self.state.skipped + result.skipped
        self.state = TrainState(self.state.step + 1, elapsed, skipped, in_a_row)

    def _total(self) -> int:
        return self.config.steps or round(60 * self.config.minutes)

    def _done(self) -> int:
        return self.state.step if self.config.steps else int(self.state.elapsed)


def train(run: RunFolder, config: TrainConfig) -> None:
    """Train in this process (and its peers, when launched as several) until the limit; run again to go on.

    Raises ValueError and FileNotFoundError for what cannot be trained, CheckpointError for unfit weights,
    TrainingDivergedError, DiskFullError.
    """
    join_group(config.engine.threads)
    Trainer(run, config).run()


def origin(config: TrainConfig, shards: Path) -> dict[str, Any]:
    """What the result of a training depends on, flat: not its limits, nor where and how often it reports."""
    settings = asdict(config)
    for free in ("shards", "steps", "minutes", "validation", "checkpoint"):
        del settings[free]
    settings["engine"].pop("threads")
    flat = {f"{part}.{key}": v for part, keys in settings.items() if isinstance(keys, dict) for key, v in keys.items()}
    flat |= {"seed": config.seed, "model.base": hash_path(config.model.base)[:16], "shards": index_digest(shards)}
    if config.model.adapter:
        flat["model.adapter"] = hash_path(config.model.adapter)[:16]
    return flat


def main() -> int:
    """Entry point of one rank; its failure is one sentence, with the traceback in RUN/logs for those who need it."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train from RUN/train.yaml.")
    parser.add_argument("--run", type=Path, required=True, help="run folder holding train.yaml")
    run = RunFolder(parser.parse_args().run)
    setup_logging()
    end_with_launcher()
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.set())
    try:
        train(run, load_recipe(run.root / "train.yaml", TrainConfig))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        tell_failure(run, error)
        return 1
    finally:
        leave_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
