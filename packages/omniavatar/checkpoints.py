"""Files of trained weights: the official OmniAvatar adapter in and out, and plain base models.

An adapter folder holds `pytorch_model.pt` (a flat dict of tensors under original Wan names) and `config.json`. Files
are complete or refused: the official loader ignores what it does not know and runs on memory it never filled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from common.runs import atomic_write, read_json, write_json
from omniavatar.adapter import inject_lora, is_trained, lora_layers
from omniavatar.audio_pack import FRAMES_PER_LATENT
from omniavatar.key_names import dit_to_diffusers, dit_to_original
from omniavatar.tensor_files import CheckpointError, check_tensors, read_torch_file
from omniavatar.transformer import AvatarTransformer, audio_blocks, to_avatar

__all__ = ["AdapterConfig", "CheckpointError", "adapter_tensors", "load_adapter", "save_adapter", "save_base"]

WEIGHTS_FILE = "pytorch_model.pt"
CONFIG_FILE = "config.json"
_LORA_LINEARS = [f"{part}_attn.{name}" for part in ("self", "cross") for name in "qkvo"] + ["ffn.0", "ffn.2"]
_OFFICIAL_TARGETS = "q,k,v,o,ffn.0,ffn.2"
_WAV2VEC2_BASE_DIM = 14 * 768


@dataclass(frozen=True)
class AdapterConfig:
    """What `config.json` says about the weights beside it. "frozen_dit" (no LoRA) is ours, the others are official."""

    architecture: Literal["lora", "full", "frozen_dit"] = "lora"
    rank: int = 128
    alpha: float = 64.0
    hidden: int = 32

    def to_json(self, in_channels: int) -> dict[str, Any]:
        """The keys of the published files; the width of the audio pack is left out at its default, as there."""
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
        return official if self.hidden == 32 else official | {"audio_hidden_size": self.hidden}

    @staticmethod
    def from_json(official: dict[str, Any], source: Path) -> "AdapterConfig":
        """Read the published keys. Raises CheckpointError for an architecture or LoRA targets we do not know."""
        architecture = official.get("train_architecture", "lora")
        targets = official.get("lora_target_modules", _OFFICIAL_TARGETS)
        problems = []
        if architecture not in ("lora", "full", "frozen_dit"):
            problems.append(f"train_architecture is {architecture!r}; expected lora, full or frozen_dit")
        if set(targets.split(",")) != set(_OFFICIAL_TARGETS.split(",")):
            problems.append(f"lora_target_modules is {targets!r}; expected {_OFFICIAL_TARGETS!r}")
        if problems:
            raise CheckpointError(source, problems)
        return AdapterConfig(
            architecture,
            int(official.get("lora_rank", 128)),
            float(official.get("lora_alpha", 64.0)),
            int(official.get("audio_hidden_size", 32)),
        )


def official_lora_names(num_layers: int) -> list[str]:
    """Every tensor name of a complete LoRA file: 844 for 40 layers (14B), 634 for 30 (1.3B)."""
    names = [
        f"blocks.{block}.{linear}.lora_{side}.default.weight"
        for block in range(num_layers)
        for linear in _LORA_LINEARS
        for side in "AB"
    ]
    whole = ["patch_embedding", "audio_proj.proj", "audio_proj.norm_out"]
    whole += [f"audio_cond_projs.{index}" for index in range(len(audio_blocks(num_layers)))]
    return names + [f"{name}.{kind}" for name in whole for kind in ("weight", "bias")]


def to_official_name(name: str) -> str:
    """`dit.blocks.0.attn1.to_q.lora_A.default.weight` -> `blocks.0.self_attn.q.lora_A.default.weight`."""
    return dit_to_original(name.removeprefix("dit."))


def to_our_name(name: str) -> str:
    """The inverse of `to_official_name`; audio modules keep their names."""
    return name if name.startswith("audio_") else "dit." + dit_to_diffusers(name)


def adapter_tensors(model: AvatarTransformer, architecture: Literal["lora", "full", "frozen_dit"]) -> dict[str, Tensor]:
    """The tensors of a model, by our names, that belong into an adapter file of this architecture."""
    return {name: value for name, value in model.state_dict().items() if is_trained(name, architecture)}


def save_adapter(
    weights: AvatarTransformer | Mapping[str, Tensor],
    folder: Path | str,
    config: AdapterConfig,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter folder in the official format from a model, or from its trained tensors by our names.

    `dtype` (bfloat16 as published, or float32) converts; None stores as they are. Each file appears whole or not at
    all, the config last. Raises CheckpointError when the set is not complete or holds NaN, DiskFullError.
    """
    folder = Path(folder)
    if isinstance(weights, AvatarTransformer):
        weights = adapter_tensors(weights, config.architecture)
    official = {to_official_name(name): value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    expected = official_lora_names(_count_layers(official)) if config.architecture == "lora" else list(official)
    shapes = {name: official[name].shape if name in official else torch.Size() for name in expected}
    problems = check_tensors(shapes, official)
    if problems:
        raise CheckpointError(folder / WEIGHTS_FILE, problems)
    with atomic_write(folder / WEIGHTS_FILE) as temporary, open(temporary, "wb") as file:
        torch.save({name: official[name] for name in sorted(official)}, file)
    write_json(folder / CONFIG_FILE, config.to_json(official["patch_embedding.weight"].shape[1]))


def _count_layers(names: Mapping[str, Tensor]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)


def load_adapter(model: AvatarTransformer, folder: Path | str) -> AvatarTransformer:
    """Load an official adapter folder into a base, in place, adding the avatar input, audio modules and LoRA first.

    A model that has them already (training resumed) must have the same sizes. Raises FileNotFoundError, and
    CheckpointError that lists everything missing, unexpected, mis-shaped or not finite.
    """
    folder = Path(folder)
    for file in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist; expected an OmniAvatar folder with both files.")
    config = AdapterConfig.from_json(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    tensors = {to_our_name(name): value for name, value in read_torch_file(folder / WEIGHTS_FILE).items()}
    if not model.hears:
        pack = tensors.get("audio_proj.proj.weight")
        width = _WAV2VEC2_BASE_DIM if pack is None or pack.ndim != 2 else pack.shape[1] // FRAMES_PER_LATENT
        to_avatar(model, width, config.hidden)
    if config.architecture == "lora" and not lora_layers(model):
        inject_lora(model, config.rank, config.alpha)
    expected = {name: value.shape for name, value in adapter_tensors(model, config.architecture).items()}
    problems = check_tensors(expected, tensors)
    if problems:
        raise CheckpointError(folder / WEIGHTS_FILE, [_in_official_words(problem) for problem in problems])
    model.load_state_dict(tensors, strict=False)
    return model


def _in_official_words(problem: str) -> str:
    """Name the tensor as the file does, not as we do."""
    kind, name, rest = problem.split(" ", 2)
    return f"{kind} {to_official_name(name)} {rest}"


def save_base(model: AvatarTransformer, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a plain base as a diffusers WanTransformer3DModel folder (sharded safetensors, config last).

    Raises ValueError for a model with LoRA or audio modules: those go into an adapter file.
    """
    if model.hears or lora_layers(model):
        raise ValueError("save_base writes plain text-to-video models; use save_adapter for what was trained on top.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.dit.state_dict().items()}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(state, folder, filename_pattern=pattern, max_shard_size="10GB")
    write_json(folder / CONFIG_FILE, {**dict(model.dit.config), "_class_name": "WanTransformer3DModel"})
