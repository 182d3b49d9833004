"""Window reads of a shard folder through the plain `webdataset` package, for comparison with `ShardReader`."""

import json
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from common.shards.index import read_index
from common.shards.sample import META, TENSORS, ShardError, read_tensors, refuse_odd_members

CACHED_SHARDS = 2


class WebdatasetReader:
    """The same windows as `ShardReader.window`, bit for bit, read as any other webdataset user would.

    webdataset cannot seek: a sample costs a pass over its whole shard, so a random order reads up to a shard for each
    sample (1.5 GB with 128 samples of 480 x 832). The `cached` shards used last stay in memory, which spares that only
    where the samples come shard by shard, or there are not more shards than that. May be shared by threads.

    Raises ModuleNotFoundError without the package, and what `read_index` raises.
    """

    def __init__(self, folder: Path | str, cached: int = CACHED_SHARDS) -> None:
        import webdataset  # slow, since it imports torch; here, so that its absence is noticed before the first sample

        # Not WebDataset(): that splits its list of shards over ranks, and the order of samples is decided elsewhere.
        self._open = lambda path: webdataset.DataPipeline(
            webdataset.SimpleShardList([str(path)]), webdataset.tarfile_to_samples()
        )
        self.folder = Path(folder)
        self.index = read_index(folder)
        self._cached = cached
        self._shards: OrderedDict[str, dict[str, dict[str, bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def window(self, row: int, latent_frames: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors of the first `latent_frames` latent frames of the clip in one row of the index, and its metadata.

        All checksums of the sample are verified. Raises ShardError, OSError.
        """
        place = self.index.slice(row, 1).to_pylist()[0]
        label = f"{self.folder / place['shard']}: sample {place['clip_id']}"
        sample = self._shard(place["shard"]).get(place["clip_id"])
        if sample is None:
            raise ShardError(f"{label} is in the index but not in the shard; write the shards again.")
        # A copy: arrays that can be written to, without changing the cache.
        tensors = read_tensors(np.frombuffer(bytearray(sample[TENSORS[1:]]), np.uint8), label)
        tensors["latents"] = tensors["latents"][:, :latent_frames]
        if place["audio_frames"]:  # a waveform is read whole
            tensors["audio"] = tensors["audio"][: 4 * (latent_frames - 1) + 1]
        return tensors, json.loads(sample[META[1:]])

    def _shard(self, name: str) -> dict[str, dict[str, bytes]]:
        """Clip id -> bytes of each member, of all samples of a shard."""
        with self._lock:
            if name not in self._shards:
                while len(self._shards) >= self._cached:
                    self._shards.popitem(last=False)
                self._shards[name] = self._stream(self.folder / name)
            self._shards.move_to_end(name)
            return self._shards[name]

    def _stream(self, path: Path) -> dict[str, dict[str, bytes]]:
        try:
            with tarfile.open(path) as tar:
                refuse_odd_members(tar, path.stat().st_size)
            return {sample["__key__"]: sample for sample in self._open(path)}
        except (tarfile.TarError, ValueError) as error:
            raise ShardError(f"{path} cannot be streamed ({error}); write the shards again.") from error
