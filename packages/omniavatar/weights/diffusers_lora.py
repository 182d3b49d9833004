"""A trained adapter in the layout of diffusers: LoRA for its own loader, and beside it what diffusers has no word for.

`pytorch_lora_weights.safetensors` is read by `load_lora_adapter(folder, use_safetensors=True)` of a
`WanTransformer3DModel` and by `load_lora_weights(folder)` of a pipeline: the matrices as they were trained, with rank
and alpha in the header, from which diffusers takes the scale (readers that know only the tensors would take 1).
`avatar_modules.safetensors` holds the patch embedding of 33 channels, by diffusers' name, and the audio modules, by
ours; a stock transformer whose patch embedding was replaced by it computes what our model computes without sound.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import save_file
from torch import Tensor

from omniavatar.model.adapter import LORA_TARGETS
from omniavatar.weights.checkpoints import AdapterConfig
from omniavatar.weights.tensor_files import read_tensors

LORA_FILE = LORA_WEIGHT_NAME_SAFE
MODULES_FILE = "avatar_modules.safetensors"
_INFIX = ".default."  # peft's name of the adapter, which files of diffusers leave out


def save_diffusers_lora(tensors: Mapping[str, Tensor], folder: Path, config: AdapterConfig, dtype: torch.dtype) -> None:
    """Write both files from a LoRA's trained tensors by our names, converted to `dtype`, into an existing folder."""
    lora, modules = _split(tensors)
    settings = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": list(LORA_TARGETS)}
    WanLoraLoaderMixin.save_lora_weights(
        folder,
        transformer_lora_layers={name: tensor.to(dtype).contiguous() for name, tensor in lora.items()},
        transformer_lora_adapter_metadata=settings,
    )
    whole = {name: tensor.to(dtype).contiguous() for name, tensor in modules.items()}
    save_file(whole, folder / MODULES_FILE, metadata={"format": "pt"})


def read_diffusers_lora(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(Our name, tensor) of everything in the two files. Raises FileNotFoundError, CheckpointError."""
    for name, tensor in read_tensors(folder / LORA_FILE):
        yield name.replace("transformer.", "dit.", 1).replace(".weight", f"{_INFIX}weight"), tensor
    for name, tensor in read_tensors(folder / MODULES_FILE):
        yield (name if name.startswith("audio_") else f"dit.{name}"), tensor


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained tensors by our names -> (LoRA matrices, all others), by the names of the two files without prefix."""
    lora = {n.removeprefix("dit.").replace(_INFIX, "."): value for n, value in tensors.items() if ".lora_" in n}
    others = {n.removeprefix("dit."): value for n, value in tensors.items() if ".lora_" not in n}
    return lora, others
