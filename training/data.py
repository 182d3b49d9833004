"""Which samples make up step n, as a pure function of (seed, position), and how they are read.

The only state of the data is one integer, the number of micro-batches consumed. Resume is exact at any number of ranks,
because the micro-batches of a step are dealt to the ranks in turn from one endless list that knows nothing of ranks.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.runs import fingerprint
from common.shards import ShardReader, read_index
from latents.constants import Constants, read_constants

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """What a micro-batch is: samples of one shape, as long as the token cap allows."""

    split: str = "train"
    batch: int = 1  # samples of one micro-batch; all have the same shape
    micro_batches: int = 1  # micro-batches of one optimizer step, over all ranks and accumulation
    max_latents: int = 0  # longest window in latent frames; 0 = as the token cap allows
    max_tokens: int = 30_000
    token_rule: Literal["strict", "official"] = "strict"
    shuffle_audio: bool = False  # control experiment: every clip gets another clip's sound


@dataclass(frozen=True)
class Sample:
    """The window of one clip: latents (16, T, h, w), references (K, 16, h, w), text (n, D), audio (F, C), float32."""

    clip_id: str
    latents: Tensor
    references: Tensor
    text: Tensor
    audio: Tensor


class Bucket(NamedTuple):
    """Shape that the samples of a micro-batch share: latent height and width, latent frames of the window."""

    height: int
    width: int
    frames: int


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one shape; `positions` are their places in the endless order of samples."""

    samples: list[Sample]
    positions: list[int]


def token_cap(height: int, width: int, max_tokens: int, rule: Literal["strict", "official"]) -> int:
    """Latent frames allowed at a latent size (height, width).

    `strict` never exceeds max_tokens. `official` is the arithmetic of the released scripts/inference.py: it caps video
    frames before rounding them to 4k+1 and so may exceed the cap by one latent frame.
    """
    per_frame = (height // 2) * (width // 2)
    if rule == "strict":
        return max_tokens // per_frame
    raw = 4 * max_tokens // per_frame
    frames = raw // 4 * 4 + 1 if raw % 4 else raw - 3
    return (frames + 3) // 4


def window_bucket(height: int, width: int, frames: int, config: DataConfig) -> Bucket:
    """Bucket of a clip: its window starts with the clip and is cut by the configured length and the token cap."""
    longest = config.max_latents or frames
    cap = token_cap(height, width, config.max_tokens, config.token_rule)
    return Bucket(height, width, min(frames, longest, cap))


class BatchPlan:
    """The endless list of micro-batches: every sample once per epoch, order drawn from (seed, epoch).

    The last micro-batch of a bucket may be short; none is dropped.
    """

    def __init__(self, buckets: list[Bucket], batch: int, seed: int) -> None:
        self.members: dict[Bucket, list[int]] = defaultdict(list)
        for row, bucket in enumerate(buckets):
            self.members[bucket].append(row)
        self.batch = batch
        self.seed = seed
        self.epoch_length = sum(-(-len(rows) // batch) for rows in self.members.values())
        self._order = lru_cache(maxsize=2)(self._shuffled_epoch)

    def __getitem__(self, index: int) -> list[int]:
        epoch, place = divmod(index, self.epoch_length)
        return self._order(epoch)[place]

    def _shuffled_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for bucket in sorted(self.members):
            rows = rng.permutation(self.members[bucket]).tolist()
            batches += [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def partner(self, bucket: Bucket, row: int) -> int:
        """Another sample of the same bucket: whose sound is used when sound is swapped. Itself when it is alone."""
        rows = self.members[bucket]
        return rows[(rows.index(row) + 1) % len(rows)]


class ClipWindows:
    """The samples of one split of a shard folder, as windows in buckets.

    Raises ValueError when the split is empty or no window of at least `shortest` latent frames fits the cap.
    """

    def __init__(self, shards: Path, config: DataConfig, seed: int, shortest: int = 2) -> None:
        self.config = config
        self.reader = ShardReader(shards)
        self.constants: Constants = read_constants(shards)
        table = read_index(shards).to_pydict()
        chosen = [row for row, split in enumerate(table["split"]) if split == config.split]
        sizes = [(table["latent_height"][r], table["latent_width"][r], table["latent_frames"][r]) for r in chosen]
        buckets = [window_bucket(*size, config) for size in sizes]
        usable = [i for i, bucket in enumerate(buckets) if bucket.frames >= shortest]
        if not usable:
            raise ValueError(
                f"{shards} holds {len(chosen)} samples of split '{config.split}', none with {shortest} or more latent "
                f"frames within {config.max_tokens} tokens; check data.split and data.max_tokens, run the latents job"
            )
        if len(usable) < len(chosen):
            logger.warning("%d of %d samples are too short or over the cap", len(chosen) - len(usable), len(chosen))
        self.rows = [chosen[i] for i in usable]
        self.clip_ids = [table["clip_id"][row] for row in self.rows]
        self.buckets = [buckets[i] for i in usable]
        self.plan = BatchPlan(self.buckets, config.batch, seed)

    @property
    def audio_dim(self) -> int:
        """Width C of one frame of audio features as the model takes them."""
        return self.read(0).audio.shape[1]

    def read(self, sample: int, swapped_audio: bool = False) -> Sample:
        """Window of one sample; with `swapped_audio` the sound is its partner's. Raises what ShardReader raises."""
        bucket = self.buckets[sample]
        tensors, _ = self.reader.sample(self.rows[sample])
        audio = tensors["audio"]
        if swapped_audio:
            audio = self.reader.sample(self.rows[self.plan.partner(bucket, sample)])[0]["audio"]
        return Sample(
            clip_id=self.clip_ids[sample],
            latents=_float(tensors["latents"][:, : bucket.frames]),
            references=_float(tensors["references"]),
            text=_float(tensors["text"]),
            audio=self.constants.model_audio(_float(audio[: 4 * (bucket.frames - 1) + 1])),
        )

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch number `index` of the endless list."""
        rows = self.plan[index]
        first = index * self.config.batch
        samples = [self.read(row, self.config.shuffle_audio) for row in rows]
        return MicroBatch(samples, list(range(first, first + len(rows))))

    def clips_of_step(self, step: int) -> list[str]:
        """The clips of all ranks' micro-batches of one step (from 0)."""
        first = step * self.config.micro_batches
        return [self.clip_ids[row] for i in range(first, first + self.config.micro_batches) for row in self.plan[i]]


def stream(windows: ClipWindows, step: int, rank: int, world: int) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of step `step`, `step` + 1, ...; the next step is read while one is trained."""
    per_step = windows.config.micro_batches

    def read(number: int) -> list[MicroBatch]:
        return [windows.micro_batch(number * per_step + i) for i in range(rank, per_step, world)]

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(read, step)
        while True:
            step += 1
            ready, ahead = ahead, pool.submit(read, step)
            yield ready.result()


def index_digest(shards: Path) -> str:
    """16 hex digits over the samples of a shard folder, in order."""
    return fingerprint(read_index(shards)["sha256"].to_pylist())


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
