"""Windows of a split of a shard folder: prefetched in the drawn order, unreadable and quarantined clips replaced."""

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, UserError
from common.runs import fingerprint
from common.shards.index import read_index
from common.shards.sample import ShardError
from common.shards.store import ShardReader
from common.shards.webdataset_reader import WebdatasetReader
from latents.constants import Constants, read_constants
from training.config import DataConfig
from training.data.buckets import Account, Bucket, account_of, window_bucket
from training.data.order import BatchSlot, Cost, Order

logger = logging.getLogger(__name__)


class BadSamplesError(UserError, ValueError):
    """More unreadable samples than allowed, or no sample left to replace one."""


@dataclass(frozen=True)
class Sample:
    """The window of one clip: latents (16, T, h, w), references (K, 16, h, w), text (n, D), audio (F, C), float32."""

    clip_id: str
    latents: Tensor
    references: Tensor
    text: Tensor
    audio: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one shape; `positions` are their places in the endless order of samples."""

    samples: list[Sample]
    positions: list[int]

    @property
    def bucket(self) -> Bucket:
        """The shape they share."""
        _, frames, height, width = self.samples[0].latents.shape
        return Bucket(height, width, frames)


class Store:
    """Shared by all windows of one training: shards, audio encoder, and the clips that are not used.

    `quarantined` clips are never used: add to it between steps, the same on all ranks. `bad` lists (clip_id, message)
    of unreadable clips, once each.
    """

    def __init__(self, shards: Path, config: DataConfig) -> None:
        self.shards = shards
        self.max_bad = config.max_bad
        self.reader = ShardReader(shards) if config.reader == "windows" else WebdatasetReader(shards)
        self.constants: Constants = read_constants(shards)
        self.encoder = self.constants.load_encoder(config.audio_encoder)
        self.quarantined: set[str] = set()
        self.bad: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def record_unreadable(self, clip_id: str, error: Exception) -> None:
        """Record an unreadable sample. Raises BadSamplesError when there are too many."""
        with self._lock:
            if clip_id in (name for name, _ in self.bad):
                return
            self.bad.append((clip_id, str(error)))
        logger.warning("clip %s cannot be read and is replaced by another one: %s", clip_id, error)
        if len(self.bad) > self.max_bad:
            raise BadSamplesError(
                f"{len(self.bad)} samples of {self.shards} cannot be read, data.max_bad is {self.max_bad}; the last is "
                f"{clip_id}: {error}"
            )


class ClipWindows:
    """The samples of one split of a shard folder, as windows in buckets, in the order of one phase of a training.

    Steps are those of the whole training; the phase begins with step `start`. Raises InputError when no window of at
    least `shortest` latent frames is left.
    """

    def __init__(
        self,
        store: Store | Path,
        config: DataConfig,
        seed: int,
        shortest: int = 2,
        phase: int = 0,
        cost: Cost | None = None,
    ) -> None:
        self.config = config = replace(config, min_latents=max(shortest, config.min_latents))
        self.store = store if isinstance(store, Store) else Store(store, config)
        self.constants = self.store.constants
        self.start = 0
        table = self.store.reader.index.select(["split", "clip_id", "latent_height", "latent_width", "latent_frames"])
        splits, names, *sides = (column.to_pylist() for column in table.columns)
        chosen = [row for row, split in enumerate(splits) if split == config.split]
        sizes = [Bucket(*(side[row] for side in sides)) for row in chosen]
        counts = Counter(sizes)
        self.account: Account = account_of(counts, config)
        if not self.account.used:
            raise InputError(_nothing(self.store.shards, config, self.account))
        windows = {size: window_bucket(*size, config) for size in counts}
        self.rows = [row for row, size in zip(chosen, sizes, strict=True) if windows[size].frames]
        self.clip_ids = [names[row] for row in self.rows]
        self.buckets = [windows[size] for size in sizes if windows[size].frames]
        self.order = Order(self.buckets, config.batch, config.micro_batches, seed, phase, cost)

    @property
    def quarantined(self) -> set[str]:
        """Clips that are not used, in all phases. Add to it between steps, the same on all ranks."""
        return self.store.quarantined

    def read(self, sample: int, swapped_audio: bool = False) -> Sample:
        """Window of one sample; with `swapped_audio` the audio is another clip's. Raises what the reader raises."""
        bucket = self.buckets[sample]
        tensors = self._tensors(sample, bucket)
        audio = tensors if not swapped_audio else self._tensors(self.partner(sample), bucket)
        return Sample(
            clip_id=self.clip_ids[sample],
            latents=_float(tensors["latents"]),
            references=_float(tensors["references"]),
            text=_float(tensors["text"]),
            audio=self.constants.model_audio(
                torch.from_numpy(np.ascontiguousarray(audio["audio"])), self.store.encoder, 4 * (bucket.frames - 1) + 1
            ),
        )

    def read_or_next(self, sample: int, swapped_audio: bool = False) -> Sample:
        """The window of a sample, or of the next of its bucket while it is quarantined or cannot be read.

        Raises BadSamplesError when too many cannot be read, or none of the bucket is left.
        """
        for candidate in itertools.chain([sample], self.order.others(sample)):
            name = self.clip_ids[candidate]
            if name in self.quarantined:
                continue
            try:
                return self.read(candidate, swapped_audio)
            except (ShardError, OSError) as error:
                self.store.record_unreadable(name, error)
        raise BadSamplesError(
            f"no sample of the shape {self.buckets[sample]} of {self.store.shards} is left to replace "
            f"{self.clip_ids[sample]}; all are quarantined or cannot be read: write the shards again"
        )

    def partner(self, sample: int) -> int:
        """The sample whose audio replaces this one's when audio is swapped: the next of the same shape, else the next
        that is as long; itself when it is alone and no window is longer.
        """
        if (other := next(self.order.others(sample), None)) is not None:
            return other
        longer = [
            b for b in self.order.members if b.frames >= self.buckets[sample].frames and b != self.buckets[sample]
        ]
        return self.order.members[min(longer, key=lambda b: (b.frames, b))][0] if longer else sample

    def batch_slots(self, step: int) -> list[BatchSlot]:
        """The micro-batches of one step, of all ranks, in the order in which they are dealt."""
        return self.order.step(step - self.start)

    def epoch_of(self, step: int) -> int:
        """The epoch of the phase in which a step begins."""
        return self.order.epoch_of(step - self.start)

    def imbalance(self, step: int, world: int) -> float:
        """Time of the slowest of `world` ranks by the mean, in one step; 1 is perfect."""
        return self.order.imbalance_of([step - self.start], world)

    def read_batch(self, slot: BatchSlot) -> MicroBatch:
        """The samples of a micro-batch of this phase."""
        samples = [self.read_or_next(row, self.config.shuffle_audio) for row in slot.rows]
        # Counted from the first step of the training, so that no two phases draw the same random numbers.
        first = (self.start * self.config.micro_batches + slot.number) * self.config.batch
        return MicroBatch(samples, list(range(first, first + len(samples))))

    def _tensors(self, sample: int, bucket: Bucket) -> dict[str, np.ndarray]:
        return self.store.reader.window(self.rows[sample], bucket.frames)[0]


def stream(windows: ClipWindows, step: int, rank: int, world: int) -> Generator[list[MicroBatch]]:
    """This rank's micro-batches of step `step`, `step` + 1, ...; the next step is prefetched while one is trained.

    `rank` of `world` counts those that read different samples. Raises what `ClipWindows.read_or_next` raises.
    """
    with ThreadPoolExecutor(windows.config.readers) as pool:

        def submit(number: int) -> list[Future[MicroBatch]]:
            return [pool.submit(windows.read_batch, slot) for slot in windows.batch_slots(number)[rank::world]]

        prefetched, excluded = submit(step), set(windows.quarantined)
        while True:
            if windows.quarantined != excluded:  # a prefetched batch may hold a clip that is not used any more
                prefetched, excluded = submit(step), set(windows.quarantined)
            ready = [future.result() for future in prefetched]
            step += 1
            prefetched = submit(step)
            yield ready


def index_digest(shards: Path) -> str:
    """Digest of the samples of a shard folder, in order: 16 hexadecimal digits."""
    return fingerprint(read_index(shards)["checksum"].to_pylist())


def _nothing(shards: Path, config: DataConfig, account: Account) -> str:
    return (
        f"{shards} holds {account.clips} samples of split '{config.split}', none with a window to train: "
        f"{account.too_short} are shorter than the shortest window, {account.over_cap} have none within "
        f"{config.max_tokens} tokens, {account.too_large} are larger than {config.longest_side} pixels; check "
        "data.split, data.max_tokens and data.durations, run the latents job"
    )


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
