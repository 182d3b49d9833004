"""Training log: JSON lines per step, the same numbers as TensorBoard events, and a progress bar."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.progress import MetricLog, ProgressBar, progress
from common.runs import disk_guard

logger = logging.getLogger(__name__)
STEPS, SKIPS, BAD, SAMPLES, EVENTS = LOG_FILES = (
    "train.jsonl",
    "skipped.jsonl",
    "bad_samples.jsonl",
    "samples.jsonl",
    "tensorboard",
)


class Report:
    """Log of the first rank; `enabled` is False on all others. `total` of the bar: steps, or seconds without a limit
    of steps.

    The JSON lines are the record and complete after any end. A kill may lose the last few events; when they are
    flushed with each checkpoint none is missing, since a resumed training rewrites all after it.
    """

    def __init__(self, logs: Path, enabled: bool, step: int, total: int, done: int) -> None:
        self.enabled = enabled
        self.done = done
        self.from_step = step
        self.log, self.skips, self.bads = MetricLog(logs / STEPS), MetricLog(logs / SKIPS), MetricLog(logs / BAD)
        self.samples = MetricLog(logs / SAMPLES)
        self.folder = logs / EVENTS
        self.events: SummaryWriter | None = None
        self.bar: ProgressBar[None] = progress(total, "train")
        if enabled:
            self.log.truncate(step or -1)  # a training that starts over writes its baseline again
            self.skips.truncate(step)
            self.bads.truncate(step)
            self.samples.truncate(step)

    def __enter__(self) -> "Report":
        if self.enabled:
            self.bar.__enter__()
            self.bar.update(self.done)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.enabled:
            self.bar.__exit__(kind, error, trace)
            self.log.close()
            self.skips.close()
            self.bads.close()
            self.samples.close()
            if self.events is not None:
                with disk_guard(self.folder):
                    self.events.close()

    def step(self, done: int, numbers: dict[str, Any]) -> None:
        """Write the metrics of a step; `done` of the total are done."""
        if not self.enabled:
            return
        self._write(numbers)
        self.bar.update(min(done, self.bar.total or done) - self.bar.count, summary(numbers))

    def baseline(self, numbers: dict[str, Any]) -> None:
        """Write the metrics before the first step, the start of the held-out curves."""
        if self.enabled:
            self._write({"step": 0} | numbers)

    def _write(self, numbers: dict[str, Any]) -> None:
        self.log.write(**numbers)
        if self.events is None:  # created with the first line: a finished training is not touched
            self.events = SummaryWriter(str(self.folder), purge_step=self.from_step + 1)
        with disk_guard(self.folder):
            for name, value in numbers.items():
                if name != "step" and isinstance(value, (int, float)):
                    self.events.add_scalar(f"train/{name}", value, numbers["step"])

    def flush(self) -> None:
        """Write pending events to disk."""
        if self.events is not None:
            with disk_guard(self.folder):
                self.events.flush()

    def skipped(self, step: int, why: dict[str, Any], clips: dict[str, float]) -> None:
        """Write a skipped step: why (`fault_tolerance.skip_reason`), and the loss of each of its clips."""
        if self.enabled:
            reason = ", ".join(f"{name} {value}" for name, value in why.items())
            logger.warning("step %d was skipped: %s; its clips: %s", step, reason, ", ".join(clips))
            self.skips.write(step=step, **why, clips=list(clips), losses=list(clips.values()))

    def bad(self, step: int, rank: int, clip: str, message: str) -> None:
        """Write a clip that a rank could not read while it prepared `step` or a later one."""
        if self.enabled:
            self.bads.write(step=step, rank=rank, clip=clip, message=message)

    def consumed(self, step: int, clips: list[str]) -> None:
        """Write the clips of a step, over all ranks, skipped steps included."""
        if self.enabled:
            self.samples.write(step=step, clips=clips)


def summary(numbers: dict[str, Any]) -> str:
    """Metrics of a step for the progress bar."""
    shares = {"MFU": numbers["mfu"], "HFU": numbers["hfu"], "waiting": numbers["data_wait_share"]}
    parts = [f"loss {numbers['loss']:.4f}", f"{numbers['tokens_per_s']:,.0f} tokens/s"]
    parts += [f"{name} {100 * share:.1f} %" for name, share in shares.items()]
    parts.append(f"{numbers['peak_memory'] / 1e9:.1f} GB")
    parts += [f"{numbers[name]} {name}" for name in ("skipped", "bad", "quarantined") if numbers[name]]
    return ", ".join(parts)
