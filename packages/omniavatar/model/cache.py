"""Caches of sampling: KV cache of the text in cross-attention, packed audio, residual of the blocks.

The first two are the same at every step and do not change the output; the residual replaces the blocks in skipped
steps. Shapes: B batch, n text tokens, D text width, S tokens, H heads, F pixel frames, T latent frames, C audio width.
"""

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn


class CachedText:
    """Text states (B, n, D) with their embedding and the keys and values of every block (a KV cache).

    Computed on first use and kept: 0.4 GB for 512 tokens at 14B in half precision. Valid for one model; no gradient.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._embedded: Tensor | None = None
        self._keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def embed(self, embedder: nn.Module, dtype: torch.dtype) -> Tensor:
        """The text in the width of the blocks, (B, n, dim); the embedder works in `dtype`."""
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
    """wav2vec2 states (B, F, C) with their packed form, computed once."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._packed: Tensor | None = None

    def packed(self, pack: nn.Module) -> Tensor:
        """The packed audio (B, T, ...), without gradient."""
        if self._packed is None:
            self._packed = pack(self.states).detach()
        return self._packed


class ResidualCache:
    """Residual of all blocks together, `value` (B, S, dim), from the last step they ran in; None before the first.

    With `reuse` the model adds it to the tokens instead of running the blocks.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.reuse = False


class TextAttention(WanAttnProcessor):
    """Cross-attention of a diffusers Wan block, with cached keys and values where the text is a CachedText."""

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
