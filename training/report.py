"""What a training says, by its first rank: a JSON line per step, the same as TensorBoard events, and a progress bar."""

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
    """Silent on every rank but the first. `total`: what the bar counts to, steps, or seconds when only time limits.

    The lines are the record, whole after any end. A kill may lose the last few events; `flush` them with a
    checkpoint and none is missing, since those after it are taken back when the training goes on.
    """

    def __init__(self, logs: Path, speaks: bool, step: int, total: int, done: int) -> None:
        self.speaks = speaks
        self.done = done
        self.from_step = step
        self.log, self.skips, self.bads = MetricLog(logs / STEPS), MetricLog(logs / SKIPS), MetricLog(logs / BAD)
        self.samples = MetricLog(logs / SAMPLES)
        self.folder = logs / EVENTS
        self.events: SummaryWriter | None = None
        self.bar: ProgressBar[None] = progress(total, "train")
        if speaks:
            self.log.truncate(step or -1)  # a training that begins says its baseline again
            self.skips.truncate(step)
            self.bads.truncate(step)
            self.samples.truncate(step)

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
            self.bads.close()
            self.samples.close()
            if self.events is not None:
                with disk_guard(self.folder):
                    self.events.close()

    def step(self, done: int, numbers: dict[str, Any]) -> None:
        """Write the numbers of a step; `done` of the total are behind."""
        if not self.speaks:
            return
        self._write(numbers)
        self.bar.update(min(done, self.bar.total or done) - self.bar.count, summary(numbers))

    def baseline(self, numbers: dict[str, Any]) -> None:
        """What held before the first step: where the held-out curves begin."""
        if self.speaks:
            self._write({"step": 0} | numbers)

    def _write(self, numbers: dict[str, Any]) -> None:
        self.log.write(**numbers)
        if self.events is None:  # not before there is something to say: a finished training is left alone
            self.events = SummaryWriter(str(self.folder), purge_step=self.from_step + 1)
        with disk_guard(self.folder):
            for name, value in numbers.items():
                if name != "step" and isinstance(value, (int, float)):
                    self.events.add_scalar(f"train/{name}", value, numbers["step"])

    def flush(self) -> None:
        """Put on disk what was said so far."""
        if self.events is not None:
            with disk_guard(self.folder):
                self.events.flush()

    def skipped(self, step: int, why: dict[str, Any], clips: dict[str, float]) -> None:
        """A step that was not taken: why (see `fault_tolerance.why_skipped`), and the loss of each of its clips."""
        if self.speaks:
            said = ", ".join(f"{name} {value}" for name, value in why.items())
            logger.warning("step %d was skipped: %s; of clips %s", step, said, ", ".join(clips))
            self.skips.write(step=step, **why, clips=list(clips), losses=list(clips.values()))

    def bad(self, step: int, rank: int, clip: str, message: str) -> None:
        """A clip that a rank could not read, for a step from `step` on."""
        if self.speaks:
            self.bads.write(step=step, rank=rank, clip=clip, message=message)

    def consumed(self, step: int, clips: list[str]) -> None:
        """The clips that a step was computed from, over all ranks, whether or not it was taken."""
        if self.speaks:
            self.samples.write(step=step, clips=clips)


def summary(numbers: dict[str, Any]) -> str:
    """What the bar shows of a step."""
    shares = {"MFU": numbers["mfu"], "HFU": numbers["hfu"], "waiting": numbers["data_wait_share"]}
    said = [f"loss {numbers['loss']:.4f}", f"{numbers['tokens_per_s']:,.0f} tokens/s"]
    said += [f"{name} {100 * share:.1f} %" for name, share in shares.items()]
    said.append(f"{numbers['peak_memory'] / 1e9:.1f} GB")
    said += [f"{numbers[name]} {name}" for name in ("skipped", "bad", "quarantined") if numbers[name]]
    return ", ".join(said)
