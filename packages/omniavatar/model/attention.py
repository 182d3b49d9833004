"""Choice of the attention kernel: torch's own, or a faster one that is installed and runs on this device.

diffusers' dispatcher knows the kernels and their requirements; a call on one token shows whether a kernel runs on this
device in this precision.
"""

import logging

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

from common.errors import InputError
from omniavatar.model.transformer import AvatarTransformer

logger = logging.getLogger(__name__)

NATIVE = AttentionBackendName.NATIVE.value
_FASTER_AND_EXACT = (AttentionBackendName._FLASH_3.value, AttentionBackendName.FLASH.value)


def choose_attention(model: AvatarTransformer, name: str = "auto") -> str:
    """Set the attention kernel of `model`, by its name in diffusers' dispatcher, and return the name.

    "native" is torch's scaled_dot_product_attention, on every device. "auto": on CUDA in half precision
    flash-attention 3, else 2, where installed; "native" otherwise. Kernels that quantise (sage) are used by name only,
    those fetched from a hub never. A model with weights to train uses torch's own kernels: flash-attention 3 has no
    backward pass in diffusers, and the others do not accept the dtypes of autocast.
    Raises ValueError, and changes nothing, when the kernel is unknown, not installed or does not run on this device.
    """
    if name == "auto":
        chosen = next((faster for faster in _candidates(model) if _why_not(model, faster) is None), NATIVE)
    else:
        chosen = name
        reason = _why_not(model, chosen)
        if reason is not None:
            raise InputError(f"Attention {name!r} cannot be used: {reason} Use 'auto' or 'native'.")
    if chosen != _current(model):
        # The context restores the default of the process, which diffusers changes along with the model's.
        with attention_backend(AttentionBackendName.NATIVE):
            model.dit.set_attention_backend(chosen)
    logger.info("attention is computed by %s", chosen)
    return chosen


def _candidates(model: AvatarTransformer) -> tuple[str, ...]:
    weight = model.dit.blocks[0].attn1.norm_q.weight
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return _FASTER_AND_EXACT if weight.is_cuda and half and not _trains(model) else ()


def _trains(model: AvatarTransformer) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def _current(model: AvatarTransformer) -> str:
    return getattr(model.dit.blocks[0].attn1.processor._attention_backend, "value", NATIVE)


def _why_not(model: AvatarTransformer, name: str) -> str | None:
    """Why this kernel cannot compute the model's attention, as one sentence; None when it can."""
    names = [backend.value for backend in AttentionBackendName if "hub" not in backend.value]
    if name not in names:
        return f"expected one of {', '.join(names)}."
    if "native" not in name and _trains(model):
        return "the model has weights to train, which needs one of torch's own kernels."
    block = model.dit.blocks[0].attn1
    like = block.norm_q.weight
    probe = torch.zeros(1, 1, block.heads, block.inner_dim // block.heads, dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad(), attention_backend(AttentionBackendName(name)):
            dispatch_attention_fn(probe, probe, probe)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return f"{str(error) or type(error).__name__}".splitlines()[0].rstrip(".") + "."
    return None
