"""Held-out loss on fixed samples, noise and times, and the audio gap: does the model use the sound at all?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from training.data import BatchPlan, ClipWindows, MicroBatch
from training.engine import Engine
from training.objective import Batch, ObjectiveConfig, draw, make_batch, sample_losses

FIXED_SEED = 20_000_003  # the same noise in every run, so that curves of different runs compare


@dataclass(frozen=True)
class ValidationConfig:
    """`every` counts steps, 0 = never. The first `samples` clips of `split` are used, at each of `sigmas`."""

    every: int = 0
    split: str = "test"
    samples: int = 16
    sigmas: tuple[float, ...] = (0.3, 0.6, 0.85)


class HeldOut:
    """The fixed batches of a validation, kept in memory: with the right sound, and with another clip's."""

    def __init__(self, windows: ClipWindows, config: ValidationConfig, objective: ObjectiveConfig, plain: bool) -> None:
        self.config = config
        self.objective = replace(objective, audio_dropout=0, text_dropout=0, zero_first_audio=0, weighting="uniform")
        self.plain = plain
        chosen = list(range(min(config.samples, len(windows.rows))))
        self.pairs = [self._pair(windows, rows) for rows in grouped(windows, chosen)]

    def _pair(self, windows: ClipWindows, rows: Sequence[int]) -> tuple[Batch, Batch]:
        constants = windows.constants
        batches = []
        for swapped in (False, True):
            micro = MicroBatch([windows.read(row, swapped) for row in rows], list(rows))
            draws = [draw(self.objective, FIXED_SEED, row, s) for row, s in zip(rows, micro.samples, strict=True)]
            batches.append(make_batch(micro, draws, constants.empty_text, constants.text_length, self.plain))
        return batches[0], batches[1]

    @torch.no_grad()
    def losses(self, engine: Engine) -> dict[str, float]:
        """Mean `heldout_loss`, one per sigma (`heldout_30` for 0.30), and `audio_gap`.

        The gap is the relative rise of the loss when the sound is swapped. All ranks evaluate everything: under ZeRO-3
        each forward pass needs all of them.
        """
        engine.module.eval()
        right = [self._mean(engine, 0, sigma) for sigma in self.config.sigmas]
        result = {"heldout_loss": sum(right) / len(right)}
        result |= {f"heldout_{round(100 * s):02d}": loss for s, loss in zip(self.config.sigmas, right, strict=True)}
        if not self.plain:
            swapped = [self._mean(engine, 1, sigma) for sigma in self.config.sigmas]
            result["audio_gap"] = sum(swapped) / sum(right) - 1
        engine.module.train()
        return result

    def _mean(self, engine: Engine, which: int, sigma: float) -> float:
        losses = []
        for pair in self.pairs:
            batch = replace(pair[which], sigma=torch.full_like(pair[which].sigma, sigma)).to(engine.device)
            losses.append(sample_losses(engine, batch, self.objective))
        return torch.cat(losses).mean().item()


def grouped(windows: ClipWindows, chosen: Sequence[int]) -> list[list[int]]:
    """The chosen samples in groups of one shape, at most a micro-batch each."""
    plan: BatchPlan = windows.plan
    size = plan.batch
    groups = []
    for bucket in sorted(plan.members):
        rows = [row for row in plan.members[bucket] if row in chosen]
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return groups
