"""The model to train: which weights it starts from and which of them move."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from omniavatar.adapter import inject_lora, mark_trainable
from omniavatar.checkpoints import load_adapter
from omniavatar.transformer import AvatarTransformer, load_base, new_base
from training.engine import cast_frozen

Variant = Literal["base", "lora", "full", "frozen_dit"]


@dataclass(frozen=True)
class ModelConfig:
    """`variant`: `base` is plain text-to-video; the others hear: LoRA (the paper's), all weights, or audio layers alone."""

    base: Path = Path()  # Wan transformer folder (diffusers or original layout)
    variant: Variant = "lora"
    init: Literal["path", "random"] = "path"  # random: only the configuration of `base` is used
    adapter: Path | None = None  # folder to continue from; None = a fresh adapter
    lora_rank: int = 128
    lora_alpha: float = 64.0
    gradient_checkpointing: bool = False


def build_model(config: ModelConfig, audio_dim: int, frozen_dtype: Literal["fp32", "bf16"], seed: int):
    ...
