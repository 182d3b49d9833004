"""Training loop of the driven networks: steps with a bar, losses in a log, a checkpoint each minute to resume from."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.progress import MetricLog, ProgressBar, progress
from common.runs import atomic_write

CHECKPOINT_SECONDS = 60.0
_LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds a training's state while it lasts. `made_of` is a fingerprint of all that goes into it: the
    state of another training is not taken. Losses go to `log`, as lines of `stage`."""

    path: Path
    made_of: str
    stage: str
    log: MetricLog

    def read(self) -> dict[str, Any]:
        """The state, empty where there is none of this training."""
        if not self.path.is_file():
            return {}
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        return state if state["made_of"] == self.made_of else {}

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            torch.save({"made_of": self.made_of, **state}, file)

    def remove(self) -> None:
        """What was trained lies in its own file."""
        self.path.unlink(missing_ok=True)


class TrainingSteps:
    """Iterate over it for the steps that remain: those of before a kill are kept, and give the same bytes.

    `parts` are everything that changes: networks, optimisers and schedules, random generators, lists of plain values.
    torch's own random numbers are kept too. Without a checkpoint nothing is.
    """

    def __init__(self, label: str, total: int, checkpoint: Checkpoint | None = None, **parts: Any) -> None:
        self.label, self.total, self.checkpoint, self.parts = label, total, checkpoint, parts
        self.first = 0
        """The step it begins with."""
        self._losses: dict[str, Tensor] = {}
        state = checkpoint.read() if checkpoint else {}
        if state:
            self.first = state["step"]
            for name, part in parts.items():
                _restore(part, state["parts"][name])
            torch.set_rng_state(state["random"])

    def __iter__(self) -> Iterator[int]:
        saved = time.monotonic()
        bar: ProgressBar[None] = progress(self.total, self.label)
        with bar:
            bar.update(self.first)
            for step in range(self.first, self.total):
                yield step
                last = step + 1 == self.total
                if self._losses and (step % _LOG_EVERY == 0 or last):
                    losses = {name: round(float(loss), 5) for name, loss in self._losses.items()}
                    bar.update(note=" ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
                    if self.checkpoint:
                        self.checkpoint.log.write(stage=f"{self.checkpoint.stage} losses", step=step, **losses)
                else:
                    bar.update()
                if self.checkpoint and time.monotonic() - saved >= CHECKPOINT_SECONDS and not last:
                    parts = {name: _state(part) for name, part in self.parts.items()}
                    self.checkpoint.write({"step": step + 1, "random": torch.get_rng_state(), "parts": parts})
                    saved = time.monotonic()

    def report(self, **losses: Tensor) -> None:
        """Losses of this step, for the bar and the log."""
        self._losses = {name: loss.detach() for name, loss in losses.items()}


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return list(part) if isinstance(part, list) else part.state_dict()


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, list):
        part[:] = state
    else:
        part.load_state_dict(state)
