"""Sharded initialisation: a base model that no rank ever holds whole, built and loaded tensor by tensor.

Only the base is built this way. LoRA and audio modules are added afterwards: inside DeepSpeed's `zero.Init` peft would
write its zeros into tensors that are sharded and empty, and lora_B would silently start at noise.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import InputError
from omniavatar.config import Variant
from omniavatar.model.transformer import AvatarTransformer
from training.config import EngineConfig
from training.engine.settings import deepspeed_settings

# isort: split
import deepspeed
from deepspeed.runtime.zero.partition_parameters import GatheredParameters

LARGE = 8_000_000_000  # bytes of weight files above which "auto" builds a base in shards


def builds_in_shards(config: EngineConfig, base: Path, variant: Variant) -> bool:
    """Whether the base in folder `base` is built in shards, without a whole copy on each rank.

    Raises InputError where the recipe sets that for a base that is trained itself.
    """
    frozen = variant in ("lora", "frozen_dit")
    if config.build == "sharded" and not frozen:
        raise InputError(
            f"engine.build is sharded and model.variant {variant}; only a base that stays frozen is built in shards, "
            "set engine.build=whole"
        )
    if config.build != "auto":
        return config.build == "sharded"
    several = config.stage == 3 and dist.is_initialized() and dist.get_world_size() > 1
    return frozen and several and sum(file.stat().st_size for file in base.glob("*.safetensors")) >= LARGE


@contextmanager
def in_shards(config: EngineConfig) -> Iterator[None]:
    """Context in which modules are sharded while they are built, each rank keeping its part; called by all ranks."""
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_settings(config, 1)):
        yield


class _WithoutDraws(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            return args[0]
        return func(*args, **(kwargs or {}))


def without_draws() -> TorchDispatchMode:
    """Context in which modules do not draw their initial weights: drawing 14 billion numbers takes minutes."""
    return _WithoutDraws()


def gathered(parameters: Iterable[nn.Parameter], change: bool = False) -> GatheredParameters:
    """Context in which sharded parameters are whole; parameters that are not sharded are unaffected.

    `change`: what the first rank writes to them in the context is broadcast to every rank.
    """
    return GatheredParameters(parameters, modifier_rank=0 if change else None)


def fill_shards(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Load named parameters of a sharded module, one at a time; called by all ranks.

    Every rank passes the same names in the same order; only the first rank's tensors are used.
    """
    parameters = dict(module.named_parameters())
    for name, value in tensors:
        with torch.no_grad(), gathered([parameters[name]], change=True):
            if dist.get_rank() == 0:
                parameters[name].copy_(value)


def cast_frozen(model: AvatarTransformer, dtype: Literal["fp32", "bf16"]) -> None:
    """Cast frozen weights to `dtype` and trained weights to fp32, in place, whole or sharded.

    With bf16, the weights that diffusers keeps in fp32 (`_keep_in_fp32_modules`) stay fp32.
    """
    kept = tuple(model.dit._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        half = dtype == "bf16" and not parameter.requires_grad and not any(part in name for part in kept)
        _cast(parameter, torch.bfloat16 if half else torch.float32)


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    for name in ("ds_tensor", "ds_secondary_tensor"):
        shard = getattr(parameter, name, None)
        if shard is not None:
            cast = shard.data.to(dtype)
            shard.data = cast.pin_memory() if shard.is_pinned() else cast
    parameter.data = parameter.data.to(dtype)
