"""What a training says, by its first rank: a JSON line per step, the same as TensorBoard events, and a progress bar."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.progress import MetricLog, ProgressBar, progress
from common.runs import disk_guard

logger = logging.getLogger(__name__)
STEPS, SKIPS, EVENTS = LOG_FILES = ("train.jsonl", "skipped.jsonl", "tensorboard")


class Report:
    """Silent on every rank but the first. `total`: what the bar counts to, steps, or seconds when only time limits.

    The lines are the record, whole after any end. A kill may lose the last few events; `flush` them with a
    checkpoint and none is missing, since those after it are taken back when the training goes on.
    """

    def __init__(self, logs: Path, speaks: bool, step: int, total: int, done: int) -> None:
        self.speaks = speaks
        self.done = done
        self.from_step = step
        self.log, self.skips = MetricLog(logs / STEPS), MetricLog(logs / SKIPS)
        self.folder = logs / EVENTS
        self.events: SummaryWriter | None = None
        self.bar: ProgressBar[None] = progress(total, "train")
        if speaks:
            self.log.truncate(step)
            self.skips.truncate(step)

    def __enter__(self) -> "Report":
        if self.speaks:
            self.bar.__enter__()
            self.bar.update(self.done)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.speaks:
            self.bar.__exit__(kind, error, trace)
            self.log.close()
            self.skips.close()
            if self.events is not None:
                with disk_guard(self.folder):
                    self.events.close()

    def step(self, done: int, numbers: dict[str, Any]) -> None:
        """Write the numbers of a step; `done` of the total are behind."""
        if not self.speaks:
            return
        self.log.write(**numbers)
        if self.events is None:  # not before there is something to say: a finished training is left alone
            self.events = SummaryWriter(str(self.folder), purge_step=self.from_step + 1)
        with disk_guard(self.folder):
            for name, value in numbers.items():
                if name != "step" and isinstance(value, (int, float)):
                    self.events.add_scalar(f"train/{name}", value, numbers["step"])
        self.bar.update(min(done, self.bar.total or done) - self.bar.count, summary(numbers))

    def flush(self) -> None:
        """Put on disk what was said so far."""
        if self.events is not None:
            with disk_guard(self.folder):
                self.events.flush()

    def skipped(self, step: int, clips: list[str]) -> None:
        """A step whose gradient was not finite: which clips it was made of."""
        if self.speaks:
            logger.warning("step %d was skipped, its gradient is not finite; clips: %s", step, ", ".join(clips))
            self.skips.write(step=step, clips=clips)


def summary(numbers: dict[str, Any]) -> str:
    """What the bar shows of a step."""
    return f"loss {numbers['loss']:.4f}, {numbers['tokens_per_s']:,.0f} tokens/s, MFU {100 * numbers['mfu']:.1f} %"
