"""The model to train: its initial weights, and which of them are trained."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import InputError
from omniavatar.model.adapter import inject_lora, mark_trainable
from omniavatar.model.transformer import AvatarTransformer, base_config, base_tensors, load_base, new_base, to_avatar
from omniavatar.weights.checkpoints import load_adapter
from omniavatar.weights.model_configs import build_empty
from omniavatar.weights.tensor_files import CheckpointError, is_finite
from training.config import EngineConfig, ModelConfig
from training.engine.sharded_init import builds_in_shards, cast_frozen, fill_shards, gathered, in_shards, without_draws
from training.omniavatar.export import DTYPES, adapter_config


def build_model(
    config: ModelConfig,
    audio_dim: int,
    frozen_dtype: Literal["fp32", "bf16"],
    seed: int,
    engine: EngineConfig | None = None,
) -> AvatarTransformer:
    """The model of `config` for audio features of width `audio_dim`, ready for the engine.

    The order matters: base weights, audio modules and LoRA outside any sharding (inside, peft's zeros are silently
    lost), trainable weights, precision. With an `engine` that builds the base in shards, all ranks call together.
    Raises FileNotFoundError, CheckpointError, InputError for a mismatch.
    """
    torch.manual_seed(seed)
    sharded = engine is not None and builds_in_shards(engine, config.base, config.variant)
    model = (
        _base_in_shards(config, engine, frozen_dtype)
        if engine is not None and sharded
        else _base(config, DTYPES[frozen_dtype])
    )
    if not config.plain:
        # Of a base in shards only the patch embedding is gathered: the avatar model widens its input.
        with gathered(model.dit.patch_embedding.parameters(), change=True), _passing_for_float32(model):
            _add_audio(model, config, audio_dim)
    mark_trainable(model, config.variant)
    cast_frozen(model, frozen_dtype)
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    model.round_timestep = config.round_timestep
    model.dit.packs_text = engine is not None and engine.pack_text
    return model.train()  # in eval mode gradient checkpointing is silently off


def _base(config: ModelConfig, frozen: torch.dtype) -> AvatarTransformer:
    if config.init == "random":
        return new_base(base_config(config.base))
    if config.variant in ("full", "base"):
        return load_base(config.base)
    return load_base(config.base, frozen, exact=["patch_embedding"])  # which is trained


@contextmanager
def _passing_for_float32(model: AvatarTransformer) -> Iterator[None]:
    """Context in which the frozen weights look like float32: peft makes LoRA, and rounds its first values, in their
    type."""
    rounded = [(parameter, parameter.data) for parameter in model.parameters() if parameter.dtype != torch.float32]
    for parameter, data in rounded:
        parameter.data = torch.empty(0, device=data.device)
    try:
        yield
    finally:
        for parameter, data in rounded:
            parameter.data = data


def _base_in_shards(
    config: ModelConfig, engine: EngineConfig, frozen_dtype: Literal["fp32", "bf16"]
) -> AvatarTransformer:
    random, arguments = config.init == "random", base_config(config.base)
    if not random:
        load_base(config.base, device="meta")  # names, shapes and types are checked before anything is read
    # The random stream must be where it is after building a whole base, so that LoRA starts at the same values.
    undrawn = nullcontext() if random else without_draws()
    with torch.random.fork_rng(devices=[], enabled=not random), in_shards(engine), undrawn:
        model = new_base(arguments)
    # Inside zero.Init DeepSpeed creates all tensors in float32; the rotation tables need float64.
    with torch.random.fork_rng(devices=[]):
        reference = build_empty(lambda: new_base(arguments))
    for buffer, computed in zip(model.buffers(), reference.buffers(), strict=True):
        buffer.data = computed.to(buffer.device)
    if not random:
        model.requires_grad_(False)
        model.dit.patch_embedding.requires_grad_(True)  # is trained, so it stays exact
        cast_frozen(model, frozen_dtype)
        fill_shards(model.dit, _finite_tensors(config.base))
    return model


def _finite_tensors(base: Path) -> Iterator[tuple[str, Tensor]]:
    first = dist.get_rank() == 0
    for name, tensor in base_tensors(base, "cpu" if first else "meta"):
        if not is_finite(tensor):
            raise CheckpointError(base, [f"broken: {name} holds NaN or infinity"])
        yield name, tensor


def _add_audio(model: AvatarTransformer, config: ModelConfig, audio_dim: int) -> None:
    if config.adapter:
        adapter_config(config)  # refuses settings that are not the adapter's
        load_adapter(model, config.adapter)
        if model.audio_dim != audio_dim:
            raise InputError(
                f"the adapter {config.adapter} takes features of width {model.audio_dim}, the shards hold {audio_dim}; "
                "encode them with the audio encoder the adapter was trained with"
            )
        return
    to_avatar(model, audio_dim, entry=config.audio_entry)
    if config.variant == "lora":
        new = adapter_config(config)
        inject_lora(model, new.rank, new.alpha)
