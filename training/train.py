"""START HERE. Trainer of one model: build, loop over steps, save.

`python -m training.train RUN` reads RUN/train.yaml and resumes from the newest checkpoint in RUN/checkpoints. One
process trains alone; `training.launch.local` or torchrun start several, which train together.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.process.imports import large_imports

with large_imports():
    from training.engine.zero import Engine, StepResult, join_group, leave_group

import torch
from torch import Tensor

from common.hashes import HASHES
from common.process.locks import hold_run
from common.process.offline import stay_offline
from common.process.signals import UNFINISHED
from common.progress import setup_logging
from common.recipe import load_recipe
from common.runs import RunFolder, write_json
from omniavatar.planning.network import network_of
from training.checkpoint import Checkpoints, record_provenance
from training.config import TrainConfig
from training.data.buckets import Bucket
from training.data.phases import WHOLE, after_validation, in_phase, next_phase, phase_number
from training.data.windows import ClipWindows, MicroBatch, Store, stream
from training.engine.optimizer import build_optimizer, learning_rate
from training.fault_tolerance import is_spike, skip_reason, step_skipped, step_taken, with_unreadable
from training.launch.hang_detection import COMPUTING, READING, SAVING, RankHeartbeat
from training.launch.rank import (
    exit_stalled,
    exit_with_launcher,
    report_failure,
    save_on_signal,
    stop_requested,
)
from training.omniavatar.export import adapter_config
from training.omniavatar.model import build_model
from training.omniavatar.objective import draw, make_batch, sample_losses
from training.omniavatar.validate import HeldOut
from training.planning.devices import peak_memory, peak_of
from training.planning.flops import Work, work
from training.provenance import origin
from training.report import Report
from training.step_metrics import StepMetrics

logger = logging.getLogger(__name__)


class Trainer:
    """Everything one rank holds: model, engine, data, checkpoints, logs. `run` trains to the limit."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        shards = run.shards if config.shards == Path() else config.shards
        plain = config.model.plain
        self.config = config
        self.store = store = Store(shards, config.data)
        model = build_model(
            config.model, store.constants.audio_dim, config.engine.frozen_dtype, config.seed, config.engine
        )
        rank = 0 if plain else adapter_config(config.model).rank
        self.network = network_of(model.dit.config, config.model.variant, rank, model.audio_entry, model.audio_dim)
        optimizer = build_optimizer(model, config.optimizer, config.engine.fused_optimizer)
        self.engine = Engine(model, optimizer, config.data.micro_batches, config.engine)
        self.text_length = store.constants.text_length
        self.phases = config.phases or (WHOLE,)
        self.parts = [
            ClipWindows(store, in_phase(config.data, phase), config.seed, 1 if plain else 2, number, self.cost)
            for number, phase in enumerate(self.phases)
        ]
        if self.engine.rank == 0:
            record_provenance(run, origin(config, shards, run.cache / HASHES))
            self.log_data(run)
        self.engine.wait()
        self.held_out: HeldOut | None = None
        if config.validation.every:
            windows = ClipWindows(store, replace(config.data, split=config.validation.split), config.seed)
            self.held_out = HeldOut(
                windows, config.validation, config.objective, plain, self.engine.data_rank, self.engine.data_world
            )
        bf16 = config.engine.autocast == "bf16"
        self.peak = peak_of(self.engine.device, torch.bfloat16 if bf16 else torch.float32)
        self.checkpoints = Checkpoints(run.checkpoints, self.engine, config.checkpoint, config.model)
        self.state = self.saved = self.checkpoints.load()
        self.started = time.monotonic() - self.state.elapsed
        self.report = Report(run.logs, self.engine.rank == 0, self.state.step, self._total(), self._done())
        self.heartbeat = RankHeartbeat(
            run.logs,
            self.engine.rank,
            self.engine.world,
            config.fault_tolerance.stall_seconds,
            partial(exit_stalled, run),
        )
        self.bad_logged = 0
        self.stop_requested = False

    def run(self) -> bool:
        """Train to the limit, with checkpoints on the way and at the end; False when stopped by a signal before it.

        Raises TrainingDivergedError, BadSamplesError, DiskFullError.
        """
        self.store.quarantined.update(self.state.quarantined)
        steps = self.enter_phase()
        with self.report, self.heartbeat:
            if self.held_out and self.state.step == 0:
                self.report.baseline(self.held_out.losses(self.engine))
            while self.progress() < 1 and not self.stop_requested:
                numbers = self.train_step(steps)
                if self.held_out and self.state.step % self.config.validation.every == 0:
                    self.heartbeat.now(SAVING)
                    numbers |= self.held_out.losses(self.engine)
                    self.state = after_validation(self.state, numbers["heldout_loss"])
                    self.state = self.checkpoints.save_best(self.state, numbers["heldout_loss"])
                self.report.step(self._done(), numbers)
                if (state := next_phase(self.state, self.phases)) != self.state:
                    self.state = state
                    steps.close()
                    steps = self.enter_phase()
                if self.checkpoints.is_due(self.state, self.saved):
                    self.save()
            if self.state != self.saved:
                self.save()
            elif self.state.step:
                self.checkpoints.repair_export()
        return self.progress() >= 1

    def enter_phase(self) -> Generator[list[MicroBatch]]:
        """Switch to the phase that the state is in; returns the stream of this rank's micro-batches from here on."""
        number = phase_number(self.state)
        self.phase, self.windows = self.phases[number], self.parts[number]
        self.windows.start = self.state.phase_starts[-1]
        return stream(self.windows, self.state.step, self.engine.data_rank, self.engine.data_world)

    def train_step(self, steps: Iterator[list[MicroBatch]]) -> dict[str, Any]:
        """One optimizer step over this rank's micro-batches; returns its metrics for the log."""
        began = time.monotonic()
        self.heartbeat.at(self.state.step + 1, 0, READING)
        micro_batches = next(steps)
        waited = time.monotonic() - began
        lr = learning_rate(in_phase(self.config.optimizer, self.phase), self.state.step, self.progress())
        step_metrics = StepMetrics()
        for number, micro in enumerate(micro_batches, 1):
            self.heartbeat.at(self.state.step + 1, number, COMPUTING)
            losses = self.losses(micro)
            step_metrics.add(
                [sample.clip_id for sample in micro.samples], losses, micro.bucket.tokens, self.work(micro.bucket)
            )
            # Divided by the nominal size: every sample weighs the same, also those of a short micro-batch.
            loss = losses.sum() / self.config.data.batch
            last = number == len(micro_batches)
            if last:
                step_metrics = step_metrics.over_ranks(self.engine)
            if last and is_spike(step_metrics.mean_loss, self.state.losses, self.config.fault_tolerance):
                self.engine.skip_step(loss)
            else:
                self.engine.backward(loss)
            result = self.engine.step(lr)
        imbalance = self.windows.imbalance(self.state.step, self.engine.data_world)
        epoch = self.windows.epoch_of(self.state.step)
        self._advance(result, step_metrics)
        self._log_consumed(micro_batches)
        return {
            "step": self.state.step,
            "epoch": epoch,
            "phase": self.phase.name,
            "loss": step_metrics.mean_loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            **step_metrics.speed(time.monotonic() - began, waited, self.engine.world, self.peak),
            "imbalance": imbalance,
            "peak_memory": peak_memory(self.engine.device),
            "skipped": self.state.skipped,
            "bad": len(self.state.bad),
            "quarantined": len(self.state.quarantined),
        }

    def losses(self, micro: MicroBatch) -> Tensor:
        """Loss of each sample (B,) of a micro-batch; its randomness is a function of its position."""
        objective, constants = in_phase(self.config.objective, self.phase), self.windows.constants
        pairs = zip(micro.samples, micro.positions, strict=True)
        draws = [draw(objective, self.config.seed, position, sample) for sample, position in pairs]
        batch = make_batch(micro, draws, constants.empty_text, constants.text_length, self.config.model.plain)
        return sample_losses(self.engine, batch.to(self.engine.device), objective)

    def work(self, bucket: Bucket) -> Work:
        """Floating-point operations for each sample of a bucket."""
        recompute = self.config.model.gradient_checkpointing
        return work(self.network, bucket.tokens, bucket.frames, self.text_length, recompute)

    def cost(self, bucket: Bucket) -> float:
        """Executed operations for each sample of a bucket, the cost by which micro-batches are balanced."""
        return self.work(bucket).executed

    def log_data(self, run: RunFolder) -> None:
        """Write logs/data.json: for each phase, clips used or left out by reason, and the imbalance between ranks."""
        accounts = {}
        for phase, part in zip(self.phases, self.parts, strict=True):
            account = asdict(part.account) | {"imbalance": part.order.imbalance(0, self.engine.data_world)}
            accounts[phase.name] = account
            figures = ", ".join(f"{name} {value:.6g}" for name, value in account.items())
            logger.info("data, phase %s: %s", phase.name, figures)
        write_json(run.logs / "data.json", accounts)

    def progress(self) -> float:
        """Progress of the run, 0 to 1, towards whichever limit is nearer."""
        by_steps = self.state.step / self.config.steps if self.config.steps else 0.0
        by_time = self.state.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(by_steps, by_time)

    def save(self) -> None:
        """Write a checkpoint of the current state, and the export."""
        self.heartbeat.now(SAVING)
        self.checkpoints.save(self.state)
        self.report.flush()
        self.saved = self.state

    def _advance(self, result: StepResult, step_metrics: StepMetrics) -> None:
        # All ranks must decide alike: the first rank's clock counts, and a signal to any rank stops all.
        (elapsed,) = self.engine.from_first_rank(time.monotonic() - self.started)
        bad, self.bad_logged = self.store.bad[self.bad_logged :], len(self.store.bad)
        stop, unread = self.engine.total(stop_requested.is_set(), len(bad))
        self.stop_requested = stop > 0
        if unread:
            self._log_bad(bad)
        if result.skipped:
            self._skip(result, step_metrics)
        else:
            self.state = step_taken(self.state, step_metrics.mean_loss, self.config.fault_tolerance)
        self.state = replace(self.state, elapsed=elapsed)

    def _log_consumed(self, micro_batches: list[MicroBatch]) -> None:
        clips = self.engine.gather([sample.clip_id for micro in micro_batches for sample in micro.samples])
        self.report.consumed(self.state.step, [clip for of_rank in clips for clip in of_rank])

    def _skip(self, result: StepResult, step_metrics: StepMetrics) -> None:
        losses = {clip: loss for clips in self.engine.gather(step_metrics.clips) for clip, loss in clips.items()}
        why = skip_reason(self.state, step_metrics.mean_loss, losses, self.config.fault_tolerance)
        self.report.skipped(self.state.step + 1, why | {"grad_norm": result.grad_norm}, losses)
        self.state = step_skipped(self.state, losses, self.config.fault_tolerance)
        self.store.quarantined.update(self.state.quarantined)

    def _log_bad(self, bad: list[tuple[str, str]]) -> None:
        for rank, found in enumerate(self.engine.gather(bad)):
            for clip, message in found:
                if clip not in self.state.bad:
                    self.report.bad(self.state.step + 1, rank, clip, message)
                    self.state = with_unreadable(self.state, clip, self.config.data.max_bad)

    def _total(self) -> int:
        return self.config.steps or round(60 * self.config.minutes)

    def _done(self) -> int:
        return self.state.step if self.config.steps else int(self.state.elapsed)


def train(run: RunFolder, config: TrainConfig) -> bool:
    """Train in this process (and its peers, when launched as several) until the limit; call again to resume.

    False when it was stopped by a signal (`training.launch.rank.stop_requested`) before the limit, and has saved.
    Raises ValueError and FileNotFoundError for unusable settings or data, CheckpointError for unsuitable weights,
    TrainingDivergedError, DiskFullError.
    """
    join_group(config.engine.threads, config.engine.collective_timeout)
    return Trainer(run, config).run()


def main() -> int:
    """Entry point of one rank; a failure prints one line, and its traceback goes to RUN/logs."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train from RUN/train.yaml.")
    # No option: torchrun would take `--run` for one of its own.
    parser.add_argument("run", type=Path, help="run folder holding train.yaml")
    run = RunFolder(parser.parse_args().run)
    stay_offline()
    setup_logging()
    exit_with_launcher()
    save_on_signal()
    try:
        # Of ranks that no launcher has started, the first holds the run for all.
        first = int(os.environ.get("RANK", "0")) == 0
        with hold_run(run.root, "training.train") if first else nullcontext():
            return 0 if train(run, load_recipe(run.root / "train.yaml", TrainConfig)) else UNFINISHED
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        report_failure(run, error)
        return 1
    finally:
        leave_group()


if __name__ == "__main__":
    sys.exit(main())
