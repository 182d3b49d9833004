"""Gradient checkpointing: what the backward pass computes again instead of keeping."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "full", "selective"]

# Every fused kernel behind torch's scaled_dot_product_attention.
_ATTENTION = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)


def recomputing(mode: Literal["full", "selective"]) -> Callable[..., Tensor]:
    """A function `run(step, *arguments)` that gives `step(*arguments)` and computes it again in the backward pass.

    "full" keeps the arguments alone. "selective" also keeps what attention gave, one more tensor of the size of the
    tokens for each attention, and spares its second computation: at 30,000 tokens half of a block's work.
    """
    if mode == "full":
        return partial(checkpoint, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _keep_attention)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _keep_attention(
    context: SelectiveCheckpointContext, op: torch._ops.OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
