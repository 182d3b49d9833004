"""Held-out loss on fixed samples, noise and times, and the audio gap: does the model use the sound at all?

Validation batches are dealt to the ranks. Under ZeRO-3 a forward pass needs all of them, so each makes equally many:
a rank with fewer batches repeats one that is not counted.
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
SOUNDS = ("right", "swapped", "silent")


@dataclass(frozen=True)
class Fixed:
    """One batch of a validation, with the right sound; `swapped` is other clips' (B, F, C), None without sound."""

    bucket: Bucket
    batch: Batch
    swapped: Tensor | None
    counts: bool

    def at(self, sigma: float, sound: str) -> Batch:
        """The batch at one noise level, with one of SOUNDS."""
        batch = replace(self.batch, sigma=torch.full_like(self.batch.sigma, sigma))
        if sound == "swapped":
            return replace(batch, audio=self.swapped)
        if sound == "silent":
            assert batch.audio is not None
            return replace(batch, audio=torch.zeros_like(batch.audio))
        return batch


class HeldOut:
    """The fixed batches of a validation that fall to one of `world` ranks with different data, kept in memory."""

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
        self.sounds = SOUNDS[:1] if plain else SOUNDS
        groups = grouped(windows, range(min(config.samples, len(windows.rows))))
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

        The gaps are the relative rise of the loss with another clip's sound, and with none. One per shape
        (`heldout_480x832x73`: height, width, video frames) where there are several. The same on all ranks.
        """
        engine.module.eval()
        keys = [
            (sound, sigma, bucket) for sound in self.sounds for sigma in self.config.sigmas for bucket in self.buckets
        ]
        sums: dict[tuple[str, float, Bucket], float] = defaultdict(float)
        for fixed in self.batches:
            for sound, sigma in ((sound, sigma) for sound in self.sounds for sigma in self.config.sigmas):
                batch = fixed.at(sigma, sound).to(engine.device)
                sums[sound, sigma, fixed.bucket] += (
                    sample_losses(engine, batch, self.objective).sum().item() * fixed.counts
                )
        engine.module.train()
        counts = [sum(len(f.batch.sigma) for f in self.batches if f.counts and f.bucket == b) for b in self.buckets]
        summed = engine.total(*(sums[key] for key in keys), *counts)
        return self._named(dict(zip(keys, summed, strict=False)), summed[len(keys) :])

    def _named(self, sums: dict[tuple[str, float, Bucket], float], counts: Sequence[float]) -> dict[str, float]:
        sigmas, samples = self.config.sigmas, sum(counts)

        def mean(sound: str) -> float:
            return sum(sums[sound, sigma, b] for sigma in sigmas for b in self.buckets) / (samples * len(sigmas))

        result = {"heldout_loss": mean("right")}
        for sigma in sigmas:
            total = sum(sums["right", sigma, bucket] for bucket in self.buckets)
            result[f"heldout_{round(100 * sigma):02d}"] = total / samples
        if len(self.buckets) > 1:
            for bucket, count in zip(self.buckets, counts, strict=True):
                total = sum(sums["right", sigma, bucket] for sigma in sigmas)
                result[f"heldout_{shape_name(bucket)}"] = total / (count * len(sigmas))
        if len(self.sounds) > 1:
            result["audio_gap"] = mean("swapped") / mean("right") - 1
            result["silence_gap"] = mean("silent") / mean("right") - 1
        return result


def grouped(windows: ClipWindows, chosen: Sequence[int]) -> list[list[int]]:
    """The chosen samples in groups of one shape, at most a micro-batch each."""
    size, wanted = windows.config.batch, set(chosen)
    groups = []
    for bucket in sorted(windows.order.members):
        rows = [row for row in windows.order.members[bucket] if row in wanted]
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return groups


def shape_name(bucket: Bucket) -> str:
    """A bucket in pixels and video frames: 480x832x73."""
    return f"{PIXELS * bucket.height}x{PIXELS * bucket.width}x{4 * (bucket.frames - 1) + 1}"
