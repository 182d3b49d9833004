"""Third-party LoRAs for the base, such as few-step ones, merged into a model; adapters for diffusers and ComfyUI.

Tensor names of third-party files are those of Wan2.1 or of diffusers, after one of _PREFIXES, or with underscores for
dots after `lora_unet_` (kohya's sd-scripts, musubi-tuner): pairs `<layer>.lora_down.weight` and `.lora_up.weight` (or
`.lora_A`, `.lora_B`) with `.alpha` if it is not the rank, and full differences `<layer>.diff` of a weight and
`<layer>.diff_b` of a bias.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import shorten
from common.untrusted.lists import parse_json
from omniavatar.model.adapter import LORA_TARGETS
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.weights.key_names import dit_to_diffusers, dit_to_original
from omniavatar.weights.tensor_files import CheckpointError, is_finite, read_tensors

_PREFIXES = (
    "base_model.model.",
    "model.",
    "pipe.",
    "diffusion_model.",
    "transformer.",
    "dit.",
)  # removed in this order
_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_")
_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}


@torch.no_grad()
def merge_extra_lora(model: AvatarTransformer, path: Path | str, scale: float = 1.0) -> None:
    """Add `scale` times the update in a file to the weights of `model`, in place, in their own precision.

    The model's adapter is not touched: both updates add up. A difference for the patch embedding of the base is added
    to the channels of the noisy latent. Raises FileNotFoundError, and CheckpointError that lists every tensor that is
    unknown, incomplete, mis-shaped or not finite; then nothing is changed.
    """
    layers, problems = _read(path, _flat_names(model))
    updates: list[tuple[Tensor, Tensor]] = []
    ratio = _stored_ratio(path)
    for layer, parts in layers.items():
        try:
            updates += _updates(_layer(model, layer), parts, ratio)
        except (AttributeError, ValueError) as error:
            problems.append(f"{layer}: {error}")
    if problems or not layers:
        raise CheckpointError(path, problems or ["holds no LoRA"])
    for target, update in updates:
        target.copy_(target.float() + scale * update.to(target.device))


def _flat_names(model: AvatarTransformer) -> dict[str, str]:
    """{a layer's name with underscores for dots, as in Wan2.1 and as in diffusers: its name in diffusers}."""
    layers = [name for name, _ in model.dit.named_modules() if name and "lora_" not in name]
    originals = {dit_to_original(f"{name}.").removesuffix(".").replace(".", "_"): name for name in layers}
    return {name.replace(".", "_"): name for name in layers} | originals


def _read(path: Path | str, flat_names: Mapping[str, str]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """{diffusers' layer name: {part: tensor}} of a file, and its problems."""
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    problems = []
    for name, tensor in read_tensors(path):
        suffix = next((end for end in _PARTS if name.endswith(end)), None)
        if suffix is None:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            continue
        layer = name.removesuffix(suffix)
        flat = next((layer.removeprefix(prefix) for prefix in _FLAT_PREFIXES if layer.startswith(prefix)), None)
        if flat is not None:
            layer = flat_names.get(flat, flat)
        for prefix in _PREFIXES:
            layer = layer.removeprefix(prefix)
        layers[dit_to_diffusers(f"{layer}.").removesuffix(".")][_PARTS[suffix]] = tensor
        if not is_finite(tensor):
            problems.append(f"broken: {name} holds NaN or infinity")
    return layers, problems


def _stored_ratio(path: Path | str) -> float:
    """alpha / rank from the header of a file that diffusers wrote; 1 elsewhere."""
    if Path(path).suffix != ".safetensors":
        return 1.0
    with safe_open(path, framework="pt") as opened:
        text = (opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")
    try:
        metadata = parse_json(text)
        ratio = float(metadata.get("transformer.lora_alpha", 1)) / float(metadata.get("transformer.r", 1))
        if not math.isfinite(ratio):
            raise ValueError("not a finite number")
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"its header's {LORA_ADAPTER_METADATA_KEY} gives no strength ({error}): {shorten(text)}"
        raise CheckpointError(path, [reason]) from error
    return ratio


def _layer(model: AvatarTransformer, name: str) -> nn.Module:
    layer = model.dit.get_submodule(name)
    return layer.base_layer if isinstance(getattr(layer, "base_layer", None), nn.Module) else layer


def _updates(layer: nn.Module, parts: Mapping[str, Tensor], ratio: float) -> list[tuple[Tensor, Tensor]]:
    """(Parameter, update in float32) pairs of one layer. Raises AttributeError, ValueError."""
    updates: list[tuple[Tensor, Tensor]] = []
    if parts.keys() & {"down", "up", "alpha"}:
        if not parts.keys() >= {"down", "up"}:
            raise ValueError(f"has only {', '.join(sorted(parts))} of a LoRA; expected both matrices")
        down, up = parts["down"].float(), parts["up"].float()
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise ValueError(f"matrices {tuple(down.shape)} and {tuple(up.shape)} do not belong together")
        factor = parts["alpha"].item() / len(down) if "alpha" in parts else ratio
        updates.append((layer.get_parameter("weight"), factor * (up @ down)))
    for kind in ("weight", "bias"):
        if kind in parts:
            updates.append((_first_channels(layer.get_parameter(kind), parts[kind]), parts[kind].float()))
    for target, update in updates:
        if target.shape != update.shape:
            raise ValueError(f"the update is {tuple(update.shape)}, the parameter {tuple(target.shape)}")
    return updates


def _first_channels(target: Tensor, update: Tensor) -> Tensor:
    """The channels of a patch embedding (dim, channels, 1, 2, 2) that the base has; any other target unchanged."""
    return target[:, : update.shape[1]] if target.ndim == update.ndim == 5 else target


LORA_FILE = LORA_WEIGHT_NAME_SAFE

MODULES_FILE = "avatar_modules.safetensors"

COMFYUI_FILE = "omniavatar_lora.safetensors"

_INFIX = ".default."  # peft's name of the adapter, which diffusers' files do not contain


def save_diffusers_lora(
    tensors: Mapping[str, Tensor], folder: Path, rank: int, alpha: float, dtype: torch.dtype
) -> None:
    """Write LoRA and audio modules from trained tensors by our names, as `dtype`, into two files of a folder."""
    lora, modules = _split(tensors)
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": list(LORA_TARGETS)}
    WanLoraLoaderMixin.save_lora_weights(
        folder,
        transformer_lora_layers={name: tensor.to(dtype).contiguous() for name, tensor in lora.items()},
        transformer_lora_adapter_metadata=settings,
    )
    whole = {name: tensor.to(dtype).contiguous() for name, tensor in modules.items()}
    save_file(whole, folder / MODULES_FILE, metadata={"format": "pt"})


def save_comfyui_lora(tensors: Mapping[str, Tensor], path: Path, alpha: float, dtype: torch.dtype) -> None:
    """Write the LoRA among trained tensors by our names as one file with the names that ComfyUI reads.

    Every pair has its `.alpha`: readers that look at tensors alone would apply the file for diffusers, whose alpha is
    in the header, rank / alpha times as strong (2 times by default). Diffusers reads this file too.
    """
    named = {}
    for name, tensor in _split(tensors)[0].items():
        layer, _, part = name.rpartition(".lora_")  # part: "A.weight", "B.weight"
        layer = f"diffusion_model.{dit_to_original(f'{layer}.').removesuffix('.')}"
        kind = "down" if part.startswith("A") else "up"
        named[f"{layer}.lora_{kind}.weight"] = tensor.to(dtype).contiguous()
        named[f"{layer}.alpha"] = torch.tensor(float(alpha))
    save_file(named, path, metadata={"format": "pt"})


def read_comfyui_lora(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(Our name, matrix) of every LoRA matrix in a file of `save_comfyui_lora`. Raises CheckpointError."""
    for name, tensor in read_tensors(path):
        layer, _, kind = name.removeprefix("diffusion_model.").rpartition(".lora_")
        if layer:
            part = "A" if kind == "down.weight" else "B"
            yield f"dit.{dit_to_diffusers(f'{layer}.')}lora_{part}{_INFIX}weight", tensor


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
