"""Cache of finished chunks on disk, from which a killed generation resumes."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from common.runs import atomic_write, fingerprint
from omniavatar.config import GenerateConfig
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import Chunk, ClipRequest, seed_of
from omniavatar.video.joins import FinishedChunk


@dataclass(frozen=True)
class ChunkCache:
    """A folder named by a fingerprint of everything that decides the pixels of a video; None: no cache."""

    folder: Path | None

    @staticmethod
    def of(folder: Path | None, models: AvatarModels, request: ClipRequest, config: GenerateConfig) -> "ChunkCache":
        """The cache of one video below `folder`."""
        inputs = [
            hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in (request.image, request.wave)
        ]
        sampling = {name: value for name, value in asdict(config).items() if name != "load"}  # in the identity
        key = [models.identity, request.prompt, seed_of(request, config), request.image.shape, inputs, sampling]
        return ChunkCache(folder and Path(folder) / fingerprint(key))

    def _file(self, chunk: Chunk) -> Path | None:
        return self.folder and self.folder / f"chunk_{chunk.index:04d}.safetensors"

    def load(self, chunk: Chunk) -> FinishedChunk | None:
        """The saved chunk, None where there is none."""
        file = self._file(chunk)
        if file is None or not file.exists():
            return None
        tensors = load_file(file)
        return FinishedChunk(tensors["frames"].numpy(), tensors["shared"].numpy(), tensors["tail"])

    def save(self, chunk: Chunk, finished: FinishedChunk) -> None:
        """Write a chunk atomically."""
        file = self._file(chunk)
        if file is not None:
            with atomic_write(file) as temporary:
                pixels = {"frames": torch.from_numpy(finished.frames), "shared": torch.from_numpy(finished.shared)}
                save_file(pixels | {"tail": finished.tail.contiguous()}, temporary)
