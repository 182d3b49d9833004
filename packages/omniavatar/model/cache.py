"""What is kept from step to step: the caption as the blocks attend to it, the packed sound, what the blocks added last.

The first two are the same at every step and change nothing; the third stands in for steps that are not computed.
Shapes: B batch, n text tokens, D text width, S tokens, H heads, F pixel frames, T latent frames, C audio width.
"""

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn


class CachedText:
    """A caption (B, n, D) that keeps what the model makes of it: its embedding, and key and value of every block.

    A block's are made when it is first asked and stay: at 14B in half precision 0.4 GB for a caption of 512 tokens.
    Belongs to one model; what it keeps has no gradient.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._embedded: Tensor | None = None
        self._keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def embed(self, embedder: nn.Module, dtype: torch.dtype) -> Tensor:
        """The caption in the width of the blocks, (B, n, dim); the embedder works in `dtype`."""
        if self._embedded is None:
            self._embedded = embedder(self.states.to(dtype)).detach()
        return self._embedded

    def keys(self, attention: Any) -> tuple[Tensor, Tensor]:
        """Key and value (B, n, H, dim / H) of one block's cross-attention. Call `embed` before."""
        if attention not in self._keys:
            key, value = attention.norm_k(attention.to_k(self._embedded)), attention.to_v(self._embedded)
            self._keys[attention] = tuple(x.unflatten(2, (attention.heads, -1)).detach() for x in (key, value))
        return self._keys[attention]


class CachedAudio:
    """wav2vec2 states (B, F, C) that keep what the audio pack makes of them."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._packed: Tensor | None = None

    def packed(self, pack: nn.Module) -> Tensor:
        """The packed sound (B, T, ...), without gradient."""
        if self._packed is None:
            self._packed = pack(self.states).detach()
        return self._packed


class ResidualCache:
    """What all blocks together added to the tokens, `value` (B, S, dim), the last time they ran; None before.

    With `reuse` it is added once more in their place.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.reuse = False


class TextAttention(WanAttnProcessor):
    """Cross-attention of a diffusers Wan block, to a caption of which it may have kept key and value."""

    def __call__(
        self,
        attention: Any,
        hidden: Tensor,
        text: Tensor | CachedText | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, S, dim) -> (B, S, dim)."""
        if not isinstance(text, CachedText):
            attended: Tensor = super().__call__(attention, hidden, text, mask, rotary)
            return attended
        query = attention.norm_q(attention.to_q(hidden))
        key, value = text.keys(attention)
        heads = query.unflatten(2, (attention.heads, -1))
        out = dispatch_attention_fn(heads, key, value, backend=self._attention_backend).flatten(2, 3).type_as(query)
        for layer in attention.to_out:
            out = layer(out)
        return out
