"""Training for a number of minutes, with a checkpoint each minute to resume from."""

import argparse
import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from common.progress import setup_logging
from common.runs import temporary_beside

logger = logging.getLogger(__name__)


class TimedTraining:
    """Drives one optimizer over one module for `minutes` of training time, on one or several processes.

    Iterate over it: it yields the share of the time used, 0..1, the same on every rank; call `update(loss)` once per
    round. Learning rate: 100 steps of warm-up, then linear decay to 3 % over the second half.
    With `WORLD_SIZE` above one (torchrun) gradients are averaged through gloo.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, out: Path, minutes: float) -> None:
        self.module, self.optimizer, self.out, self.minutes = module, optimizer, Path(out), minutes
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
        self.checkpoint = self.out.with_name(self.out.name + ".ckpt")
        self.log_path = self.out.with_name(self.out.name + ".jsonl")
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.step, self.seconds = 0, 0.0
        self._resume()

    def __iter__(self) -> Iterator[float]:
        saved = tick = time.monotonic()
        while (progress := self.seconds / 60 / self.minutes) < 1:
            rate = min(1, (self.step + 1) / 100) * min(1, 0.03 + 1.94 * (1 - progress))
            for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
                group["lr"] = peak * rate
            yield progress
            now = time.monotonic()
            self.seconds += self._agreed(now - tick)
            tick = now
            if now - saved > 60:
                self.save()
                saved = now
        self.save()

    def update(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One optimizer step on `loss` with gradients averaged over ranks and clipped to norm `clip`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            pieces = (flat / self.world).split([g.numel() for g in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        self.step += 1

    def record(self, **numbers: Any) -> None:
        """Append one line of numbers, with step and minutes, to the log beside `out`."""
        if self.rank == 0:
            row = {"step": self.step, "minutes": round(self.seconds / 60, 2), **numbers}
            with self.log_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            logger.info("%s", row)

    def save(self) -> None:
        """Write weights, optimizer and clock; an interrupted write leaves the previous checkpoint whole."""
        if self.rank == 0:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            beside = temporary_beside(self.checkpoint)
            state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state | {"step": self.step, "seconds": self.seconds}, beside)
            beside.replace(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def _agreed(self, seconds: float) -> float:
        if self.world == 1:
            return seconds
        shared = torch.tensor([seconds])
        dist.all_reduce(shared)
        return shared.item() / self.world


def train_command(train: Callable[[Path, float, int], Any], minutes: float) -> None:
    """The command line of a training file: `--out PATH --minutes M --seed N`."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(train))
    parser.add_argument("--out", type=Path, required=True, help="where the weights are written")
    parser.add_argument("--minutes", type=float, default=minutes, help="minutes of one core")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    setup_logging()
    train(arguments.out, arguments.minutes, arguments.seed)
