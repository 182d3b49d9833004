"""Adapter files in the official OmniAvatar format, and folders of base models.

An adapter folder holds `pytorch_model.pt` (a flat dict of tensors under original Wan names) and `config.json`. Files
are complete or refused: the official loader ignores what it does not know and runs on memory it never filled.
A base folder is in the layout of diffusers or in the original one of the authors of Wan2.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from common.errors import MissingFileError
from common.runs import read_json, write_json
from common.untrusted.weight_files import Shapes, check_config, side
from omniavatar.config import AudioEntry
from omniavatar.model.adapter import inject_lora, is_trained, lora_layers
from omniavatar.model.audio_entry import audio_tensor_names, audio_width
from omniavatar.model.transformer import AvatarTransformer, config_to_original, to_avatar
from omniavatar.weights.key_names import dit_to_diffusers, dit_to_original
from omniavatar.weights.model_configs import build_empty
from omniavatar.weights.tensor_files import (
    CheckpointError,
    check_tensors,
    read_tensors,
    rename_problems,
    write_shards,
    write_torch_file,
)

WEIGHTS_FILE = "pytorch_model.pt"
CONFIG_FILE = "config.json"
_LORA_LINEARS = [f"{part}_attn.{name}" for part in ("self", "cross") for name in "qkvo"] + ["ffn.0", "ffn.2"]
_OFFICIAL_TARGETS = "q,k,v,o,ffn.0,ffn.2"
_WAV2VEC2_BASE_DIM = 14 * 768
_TYPES: dict[str, Any] = {"lora_rank": 128, "lora_alpha": 64.0, "lora_target_modules": "", "audio_hidden_size": 32}
_TYPES |= {"model_config": {}, "train_architecture": "", "audio_entry": ""}


@dataclass(frozen=True)
class AdapterConfig:
    """The `config.json` beside adapter weights. "frozen_dit" (no LoRA) is our own, the others are official."""

    architecture: Literal["lora", "full", "frozen_dit"] = "lora"
    rank: int = 128
    alpha: float = 64.0
    hidden: int | None = None  # width of the packed audio; None is the default of the audio entry
    audio_entry: AudioEntry = "multi"

    def to_json(self, in_channels: int) -> dict[str, Any]:
        """The keys of the published files; audio width and audio entry are omitted at their defaults, as there."""
        official: dict[str, Any] = {
            "i2v": True,
            "use_audio": True,
            "random_prefix_frames": True,
            "model_config": {"in_dim": in_channels},
            "train_architecture": self.architecture,
        }
        if self.architecture == "lora":
            official |= {"lora_target_modules": _OFFICIAL_TARGETS, "init_lora_weights": "kaiming"}
            official |= {"lora_rank": self.rank, "lora_alpha": float(self.alpha)}
        if self.audio_entry != "multi":
            official["audio_entry"] = self.audio_entry
        return official if self.hidden is None else official | {"audio_hidden_size": self.hidden}

    @staticmethod
    def from_json(official: dict[str, Any], source: Path) -> "AdapterConfig":
        """Read the published keys. Raises CheckpointError for an unknown architecture or LoRA targets, wrong types."""
        check_config(source, official, {}, defaults=_TYPES)
        official = {key: value for key, value in official.items() if value is not None}
        architecture = official.get("train_architecture", "lora")
        targets = official.get("lora_target_modules", _OFFICIAL_TARGETS)
        problems = []
        if architecture not in ("lora", "full", "frozen_dit"):
            problems.append(f"train_architecture is {architecture!r}; expected lora, full or frozen_dit")
        if set(targets.split(",")) != set(_OFFICIAL_TARGETS.split(",")):
            problems.append(f"lora_target_modules is {targets!r}; expected {_OFFICIAL_TARGETS!r}")
        audio_entry = official.get("audio_entry", "multi")
        if audio_entry not in get_args(AudioEntry):
            problems.append(f"audio_entry is {audio_entry!r}; expected one of {', '.join(get_args(AudioEntry))}")
        if problems:
            raise CheckpointError(source, problems)
        return AdapterConfig(
            architecture,
            int(official.get("lora_rank", 128)),
            float(official.get("lora_alpha", 64.0)),
            official.get("audio_hidden_size"),
            audio_entry,
        )


def official_lora_names(num_layers: int, entry: AudioEntry = "multi") -> list[str]:
    """Every tensor name of a complete LoRA file: as published, 844 for 40 layers (14B), 634 for 30 (1.3B)."""
    names = [
        f"blocks.{block}.{linear}.lora_{side}.default.weight"
        for block in range(num_layers)
        for linear in _LORA_LINEARS
        for side in "AB"
    ]
    return [*names, "patch_embedding.weight", "patch_embedding.bias", *audio_tensor_names(entry, num_layers)]


def to_official_name(name: str) -> str:
    """`dit.blocks.0.attn1.to_q.lora_A.default.weight` -> `blocks.0.self_attn.q.lora_A.default.weight`."""
    return dit_to_original(name.removeprefix("dit."))


def to_our_name(name: str) -> str:
    """The inverse of `to_official_name`; audio modules keep their names."""
    return name if name.startswith("audio_") else "dit." + dit_to_diffusers(name)


def adapter_tensors(model: AvatarTransformer, architecture: Literal["lora", "full", "frozen_dit"]) -> dict[str, Tensor]:
    """The tensors of a model, by our names, that an adapter file of this architecture contains.

    "full" is for a model that was trained in full, or one whose LoRA is merged (`merge_lora`), without the LoRA itself.
    Raises ValueError for "full" when it is not merged.
    """
    state = {name: value for name, value in model.state_dict().items() if is_trained(name, architecture)}
    if architecture != "full":
        return state
    if not all(layer.merged for layer in lora_layers(model)):
        raise ValueError("A full file contains no LoRA; call merge_lora first, or save the architecture 'lora'.")
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def save_adapter(
    weights: AvatarTransformer | Mapping[str, Tensor],
    folder: Path | str,
    config: AdapterConfig,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter folder in the official format from a model, or from its trained tensors by our names.

    `dtype` (bfloat16 as published, or float32) converts; None does not. Each file is written atomically, the config
    last. Raises CheckpointError when the set is not complete or has NaN, DiskFullError.
    """
    folder = Path(folder)
    if isinstance(weights, AvatarTransformer):
        weights = adapter_tensors(weights, config.architecture)
    official = {to_official_name(name): value for name, value in weights.items()}
    expected = list(official)
    if config.architecture == "lora":
        expected = official_lora_names(_count_layers(official), config.audio_entry)
    shapes = {name: official[name].shape if name in official else torch.Size() for name in expected}
    problems = check_tensors(shapes, official)
    if problems:
        raise CheckpointError(folder / WEIGHTS_FILE, problems)
    write_torch_file(folder / WEIGHTS_FILE, official, dtype)
    write_json(folder / CONFIG_FILE, config.to_json(official["patch_embedding.weight"].shape[1]))


def _count_layers(names: Mapping[str, Tensor]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)


def load_adapter(model: AvatarTransformer, folder: Path | str) -> AvatarTransformer:
    """Load an official adapter folder into a base, in place, adding the avatar input, audio modules and LoRA first.

    A model that has them already (resumed training) must have the same sizes; for a model on device "meta" only the
    header of the file is read and checked. Raises FileNotFoundError, and CheckpointError that lists everything missing,
    unexpected, mis-shaped or not finite.
    """
    folder = Path(folder)
    for file in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
        if not file.exists():
            raise MissingFileError(f"{file} does not exist; expected an OmniAvatar folder with both files.")
    official = read_json(folder / CONFIG_FILE)
    config = AdapterConfig.from_json(official, folder / CONFIG_FILE)
    empty = model.dit.patch_embedding.weight.is_meta
    read = dict(read_tensors(folder / WEIGHTS_FILE, "meta" if empty else "cpu"))
    _check_sizes(folder / CONFIG_FILE, official, {name: tuple(tensor.shape) for name, tensor in read.items()})
    tensors = {to_our_name(name): value for name, value in read.items()}
    if not model.has_audio:
        pack = tensors.get("audio_proj.proj.weight")
        width = _WAV2VEC2_BASE_DIM if pack is None or pack.ndim != 2 else audio_width(pack, config.audio_entry)
        to_avatar(model, width, config.hidden, config.audio_entry)
    if config.architecture == "lora" and not lora_layers(model):
        inject = partial(inject_lora, model, config.rank, config.alpha)
        build_empty(inject) if empty else inject()
    expected = {name: value.shape for name, value in adapter_tensors(model, config.architecture).items()}
    problems = check_tensors(expected, tensors)
    if problems:
        raise CheckpointError(folder / WEIGHTS_FILE, rename_problems(problems, to_official_name))
    model.load_state_dict(tensors, strict=False)
    return model


def _check_sizes(file: Path, official: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare an adapter's `config.json` with the shapes of its weights. Raises CheckpointError."""
    whole = {"lora_rank": AdapterConfig.rank, **official}
    whole["model_config.in_dim"] = (official.get("model_config") or {}).get("in_dim")
    sizes = {
        "lora_rank": side(shapes, "blocks.0.self_attn.q.lora_A.default.weight", 0),
        "model_config.in_dim": side(shapes, "patch_embedding.weight", 1) if whole["model_config.in_dim"] else None,
    }
    check_config(file, whole, shapes, sizes)


def save_base(
    model: AvatarTransformer,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    layout: Literal["diffusers", "original"] = "diffusers",
    shard_size: int | str = "10GB",
) -> None:
    """Write a plain base as a diffusers WanTransformer3DModel folder or as the authors' own (config last).

    Both contain `diffusion_pytorch_model*.safetensors`, with an index when there are several; they differ in tensor
    names and in the keys of `config.json`. Raises ValueError for a model with LoRA or audio modules (these belong in an
    adapter file) or one that the original layout cannot represent, CheckpointError for NaN, DiskFullError.
    """
    if model.has_audio or lora_layers(model):
        raise ValueError("save_base writes plain text-to-video models; use save_adapter for what was trained on top.")
    folder, state = Path(folder), model.dit.state_dict()
    if layout == "original":
        config = config_to_original(model.dit)
        state = {dit_to_original(name): value for name, value in state.items()}
    else:
        config = {**dict(model.dit.config), "_class_name": "WanTransformer3DModel"}
    write_shards(folder, state, "diffusion_pytorch_model", dtype, shard_size)
    write_json(folder / CONFIG_FILE, config)
