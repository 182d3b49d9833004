"""What a training says: one JSON line per step and a progress bar, by the first rank alone."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from common.progress import MetricLog, ProgressBar, progress

logger = logging.getLogger(__name__)
STEPS, SKIPS = LOG_FILES = ("train.jsonl", "skipped.jsonl")


class Report:
    """Silent on every rank but the first. `total`: what the bar counts to, steps, or seconds when only time limits."""

    def __init__(self, logs: Path, speaks: bool, step: int, total: int, done: int) -> None:
        self.speaks = speaks
        self.done = done
        self.log, self.skips = MetricLog(logs / STEPS), MetricLog(logs / SKIPS)
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

    def step(self, done: int, numbers: dict[str, Any]) -> None:
        """Write the numbers of a step; `done` of the total are behind."""
        if self.speaks:
            self.log.write(**numbers)
            self.bar.update(min(done, self.bar.total or done) - self.bar.count, f"loss {numbers['loss']:.4f}")

    def skipped(self, step: int, clips: list[str]) -> None:
        """A step whose gradient was not finite: which clips it was made of."""
        if self.speaks:
            logger.warning("step %d was skipped, its gradient is not finite; clips: %s", step, ", ".join(clips))
            self.skips.write(step=step, clips=clips)
