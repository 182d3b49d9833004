"""What all samples of a shard folder share, in one small file beside the shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from common.runs import atomic_write
from omniavatar.audio_encoder import restore_duplicate

FILE_NAME = "constants.safetensors"


@dataclass(frozen=True)
class Constants:
    """Embedding (n, D) of the empty caption, the length captions are padded to, width C of the model's audio input."""

    empty_text: Tensor
    text_length: int
    audio_dim: int

    def model_audio(self, stored: Tensor) -> Tensor:
        """Stored audio features (F, C - D) as the model takes them (F, C): the duplicated layer put back."""
        return restore_duplicate(stored, self.audio_dim)


def write_constants(folder: Path, constants: Constants) -> None:
    """Write the file into a shard folder."""
    tensors = {
        "empty_text": constants.empty_text.numpy().astype(np.float16),
        "text_length": np.array(constants.text_length),
        "audio_dim": np.array(constants.audio_dim),
    }
    with atomic_write(folder / FILE_NAME) as path:
        save_file(tensors, path)


def read_constants(folder: Path) -> Constants:
    """Read the file of a shard folder. Raises FileNotFoundError when the folder holds no finished shards."""
    path = folder / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {folder} holds no finished shards: run the latents stage first")
    tensors = load_file(path)
    text = torch.from_numpy(tensors["empty_text"].astype(np.float32))
    return Constants(text, int(tensors["text_length"]), int(tensors["audio_dim"]))
