"""Validation: held-out loss on fixed samples, noise and timesteps, and the audio gap: is audio used?

Validation batches are dealt to the ranks. Under ZeRO-3 all ranks take part in a forward pass, so each makes the same
number: a rank with fewer batches repeats one that is not counted.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.config import ObjectiveConfig, ValidationConfig
from training.data.buckets import PIXELS, Bucket
from training.data.windows import ClipWindows, MicroBatch
from training.engine.zero import Engine
from training.omniavatar.objective import Batch, draw, make_batch, sample_losses

FIXED_SEED = 20_000_003  # the same noise in every run, so that curves of different runs compare
AUDIO_KINDS = ("right", "swapped", "silent")


@dataclass(frozen=True)
class Fixed:
    """One validation batch, with its own audio; `swapped` is that of other clips (B, F, C), None without audio."""

    bucket: Bucket
    batch: Batch
    swapped: Tensor | None
    counts: bool

    def at(self, sigma: float, audio: str) -> Batch:
        """The batch at one noise level, with audio of one of AUDIO_KINDS."""
        batch = replace(self.batch, sigma=torch.full_like(self.batch.sigma, sigma))
        if audio == "swapped":
            return replace(batch, audio=self.swapped)
        if audio == "silent":
            assert batch.audio is not None
            return replace(batch, audio=torch.zeros_like(batch.audio))
        return batch


class HeldOut:
    """The validation batches of one of `world` ranks with different data, kept in memory."""

    def __init__(
        self,
        windows: ClipWindows,
        config: ValidationConfig,
        objective: ObjectiveConfig,
        plain: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.config = config
        self.objective = replace(objective, audio_dropout=0, text_dropout=0, zero_first_audio=0, weighting="uniform")
        self.audio_kinds = AUDIO_KINDS[:1] if plain else AUDIO_KINDS
        groups = grouped_by_shape(windows, range(min(config.samples, len(windows.rows))))
        self.buckets = sorted({windows.buckets[rows[0]] for rows in groups})
        own = groups[rank::world] or groups[:1]
        passes = -(-len(groups) // world)
        counted = len(groups[rank::world])
        padded = [own[i] if i < len(own) else own[0] for i in range(passes)]
        self.batches = [self._fixed(windows, rows, plain, i < counted) for i, rows in enumerate(padded)]

    def _fixed(self, windows: ClipWindows, rows: Sequence[int], plain: bool, counts: bool) -> Fixed:
        constants = windows.constants
        batches = []
        for swapped in (False, True):
            micro = MicroBatch([windows.read_or_next(row, swapped) for row in rows], list(rows))
            draws = [draw(self.objective, FIXED_SEED, row, s) for row, s in zip(rows, micro.samples, strict=True)]
            batches.append(make_batch(micro, draws, constants.empty_text, constants.text_length, plain))
        right, swapped_batch = batches
        return Fixed(windows.buckets[rows[0]], right, swapped_batch.audio, counts)

    @torch.no_grad()
    def losses(self, engine: Engine) -> dict[str, float]:
        """Mean `heldout_loss`, one per sigma (`heldout_30` for 0.30) and shape, `audio_gap` and `silence_gap`.

        The gaps are the relative rise of the loss with another clip's audio, and with silence. One per shape
        (`heldout_480x832x73`: height, width, video frames) where there are several. The same on all ranks.
        """
        engine.module.eval()
        keys = [
            (audio, sigma, bucket)
            for audio in self.audio_kinds
            for sigma in self.config.sigmas
            for bucket in self.buckets
        ]
        sums: dict[tuple[str, float, Bucket], float] = defaultdict(float)
        for fixed in self.batches:
            for audio, sigma in ((audio, sigma) for audio in self.audio_kinds for sigma in self.config.sigmas):
                batch = fixed.at(sigma, audio).to(engine.device)
                sums[audio, sigma, fixed.bucket] += (
                    sample_losses(engine, batch, self.objective).sum().item() * fixed.counts
                )
        engine.module.train()
        counts = [sum(len(f.batch.sigma) for f in self.batches if f.counts and f.bucket == b) for b in self.buckets]
        summed = engine.total(*(sums[key] for key in keys), *counts)
        return self._named(dict(zip(keys, summed, strict=False)), summed[len(keys) :])

    def _named(self, sums: dict[tuple[str, float, Bucket], float], counts: Sequence[float]) -> dict[str, float]:
        sigmas, samples = self.config.sigmas, sum(counts)

        def mean(audio: str) -> float:
            return sum(sums[audio, sigma, b] for sigma in sigmas for b in self.buckets) / (samples * len(sigmas))

        result = {"heldout_loss": mean("right")}
        for sigma in sigmas:
            total = sum(sums["right", sigma, bucket] for bucket in self.buckets)
            result[f"heldout_{round(100 * sigma):02d}"] = total / samples
        if len(self.buckets) > 1:
            for bucket, count in zip(self.buckets, counts, strict=True):
                total = sum(sums["right", sigma, bucket] for sigma in sigmas)
                result[f"heldout_{shape_name(bucket)}"] = total / (count * len(sigmas))
        if len(self.audio_kinds) > 1:
            result["audio_gap"] = mean("swapped") / mean("right") - 1
            result["silence_gap"] = mean("silent") / mean("right") - 1
        return result


def grouped_by_shape(windows: ClipWindows, chosen: Sequence[int]) -> list[list[int]]:
    """The chosen samples in groups of one shape, at most a micro-batch each."""
    size, members = windows.config.batch, set(chosen)
    groups = []
    for bucket in sorted(windows.order.members):
        rows = [row for row in windows.order.members[bucket] if row in members]
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return groups


def shape_name(bucket: Bucket) -> str:
    """A bucket in pixels and video frames: 480x832x73."""
    return f"{PIXELS * bucket.height}x{PIXELS * bucket.width}x{4 * (bucket.frames - 1) + 1}"
