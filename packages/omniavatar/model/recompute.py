"""Gradient checkpointing: which activations the backward pass recomputes instead of storing."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# Every fused kernel behind torch's scaled_dot_product_attention.
_ATTENTION = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)


def recomputing(mode: Literal["full", "selective", "offload"]) -> Callable[..., Tensor]:
    """A function `run(step, module, tokens, *arguments)` that calls `step` and recomputes it in the backward pass.

    "full" stores only the arguments. "selective" also stores the output of self-attention, one more tensor of the size
    of the tokens, and saves its second computation: at 30,000 tokens half of a block's work. "offload" stores the
    tokens in host memory instead of the device's.
    """
    if mode == "full":
        return partial(checkpoint, use_reentrant=False)
    if mode == "offload":
        return _offloaded
    contexts = partial(create_selective_checkpoint_contexts, _keep_self_attention)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def _keep_self_attention(
    context: SelectiveCheckpointContext, op: torch._ops.OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    # As many keys as queries. Attention to text or audio has few keys and is cheap to recompute.
    keeps = op in _ATTENTION and args[0].shape[-2] == args[1].shape[-2]
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


def _offloaded(step: Callable[..., Tensor], module: Any, tokens: Tensor, *arguments: Any) -> Tensor:
    def pack(kept: Tensor) -> tuple[torch.device, Tensor]:
        # Only the tokens are large. Text and rotary tables are the same tensors in every block and stay on the device.
        return kept.device, _on_host(kept) if kept.data_ptr() == address and kept.shape == tokens.shape else kept

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, kept = packed
        return kept.to(device, non_blocking=True)

    address = tokens.data_ptr()
    with saved_tensors_hooks(pack, unpack):
        return checkpoint(step, module, tokens, *arguments, use_reentrant=False)


def _on_host(tensor: Tensor) -> Tensor:
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return kept.copy_(tensor)
