"""The model to train: which weights it starts from and which of them move."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from common.runs import read_json
from omniavatar.adapter import Variant, inject_lora, mark_trainable
from omniavatar.audio_entry import AudioEntry
from omniavatar.checkpoints import load_adapter
from omniavatar.recompute import Recompute
from omniavatar.transformer import AvatarTransformer, load_base, new_base, to_avatar
from training.engine import cast_frozen


@dataclass(frozen=True)
class ModelConfig:
    """Where the weights come from.

    `variant`: "base" is plain text-to-video; the others hear, and train LoRA (the paper's), all weights ("full") or the
    audio modules and patch embedding alone ("frozen_dit"). `init`: "random" takes only the configuration of `base`.
    `adapter`: folder to go on from, with its own `audio_entry` and rank; None starts a fresh one, whose first output
    equals the base model's. `audio_entry`: how the sound enters; "multi" is the paper's, the others its comparisons.
    `gradient_checkpointing`: "full" keeps the input of each block alone, "selective" also what attention gave, for one
    more tensor of the tokens' size per attention and a seventh less work at 14B; "none" keeps all.
    """

    base: Path = Path()
    variant: Variant = "lora"
    init: Literal["path", "random"] = "path"
    adapter: Path | None = None
    lora_rank: int = 128
    lora_alpha: float = 64.0
    audio_entry: AudioEntry = "multi"
    gradient_checkpointing: Recompute = "none"

    @property
    def plain(self) -> bool:
        """True for text-to-video without picture and sound."""
        return self.variant == "base"


def build_model(
    config: ModelConfig, audio_dim: int, frozen_dtype: Literal["fp32", "bf16"], seed: int
) -> AvatarTransformer:
    """The model of `config`, hearing audio features of width `audio_dim`, ready for the engine.

    The order matters: base weights, audio modules and LoRA outside any sharding (inside, peft's zeros are lost without
    an error), what is trained, precision. Raises FileNotFoundError, CheckpointError, ValueError for a mismatch.
    """
    torch.manual_seed(seed)
    model = new_base(read_json(config.base / "config.json")) if config.init == "random" else load_base(config.base)
    if not config.plain:
        _add_hearing(model, config, audio_dim)
    mark_trainable(model, config.variant)
    cast_frozen(model, frozen_dtype)
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    return model.train()  # without it gradient checkpointing is silently off


def _add_hearing(model: AvatarTransformer, config: ModelConfig, audio_dim: int) -> None:
    if config.adapter:
        load_adapter(model, config.adapter)
        if model.audio_dim != audio_dim:
            raise ValueError(
                f"the adapter {config.adapter} hears features of width {model.audio_dim}, the shards hold {audio_dim}; "
                "encode them with the audio encoder the adapter was trained with"
            )
        return
    to_avatar(model, audio_dim, entry=config.audio_entry)
    if config.variant == "lora":
        inject_lora(model, config.lora_rank, config.lora_alpha)
