"""Caches of sampling: KV cache of the text in cross-attention, packed audio, residual of the blocks.

The first two are the same at every step and do not change the output; the residual replaces the blocks in skipped
steps. Shapes: B batch, n text tokens, D text width, S tokens, H heads, F pixel frames, T latent frames, C audio width.
"""

from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn


class TextKeys(NamedTuple):
    """Keys and values (B, n, H, dim / H) of the text in the cross-attention of one block, and the bias (n,) of
    `pack_text`."""

    key: Tensor
    value: Tensor
    bias: Tensor | None = None


class PackedText(NamedTuple):
    """Text states (B, n, D) without most of their padding, and what is added to the scores of each (n,)."""

    states: Tensor
    bias: Tensor


_MULTIPLE = 64  # of packed lengths, so that few shapes occur
_PADDING_KEYS = 4


def pack_text(states: Tensor) -> PackedText | None:
    """Replace the zero padding of text states (B, n, D) by four states that weigh as much; None where that is no less.

    Wan attends to the padding. All of it is one vector, so its keys and values are equal in every block, and m of them
    count in a softmax as one whose score is log(m) higher. As bfloat16 has no log(m), four scores are added that it
    has, whose exponentials sum up to m within 3e-7. Equal in exact arithmetic, also for texts of several lengths.
    """
    length = states.shape[1]
    real = int(states.detach().ne(0).any(2).any(0).nonzero().amax() + 1) if states.any() else 0
    kept = -(-(real + _PADDING_KEYS) // _MULTIPLE) * _MULTIPLE
    if kept >= length:
        return None
    scores, rest = [], float(length - kept + _PADDING_KEYS)
    for _ in range(_PADDING_KEYS):
        score = torch.tensor(rest).log().bfloat16()
        if score.double().exp() > rest:
            score = torch.nextafter(score, score.new_tensor(-torch.inf))
        scores.append(float(score))
        rest -= float(score.double().exp())
    bias = states.new_zeros(kept)
    bias[-_PADDING_KEYS:] = states.new_tensor(scores)
    return PackedText(states[:, :kept], bias)


class CachedText:
    """Text states (B, n, D) with their embedding and the keys and values of every block (a KV cache).

    Computed on first use and kept: 0.4 GB for 512 tokens at 14B in half precision. Valid for one model; no gradient.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._embedded: Tensor | None = None
        self._bias: Tensor | None = None
        self._keys: dict[nn.Module, TextKeys] = {}

    def embed(self, embedder: nn.Module, dtype: torch.dtype, pack: bool = False) -> Tensor:
        """The text in the width of the blocks, (B, n, dim), packed or not; the embedder works in `dtype`."""
        if self._embedded is None:
            packed = pack_text(self.states.to(dtype)) if pack else None
            states, self._bias = packed or (self.states.to(dtype), None)
            self._embedded = embedder(states).detach()
        return self._embedded

    def keys(self, attention: Any) -> TextKeys:
        """Keys and values of one block's cross-attention. Call `embed` before."""
        if attention not in self._keys:
            key, value = attention.norm_k(attention.to_k(self._embedded)), attention.to_v(self._embedded)
            self._keys[attention] = _by_head(attention, key.detach(), value.detach(), self._bias)
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
        text: Tensor | CachedText | PackedText | TextKeys | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, S, dim) -> (B, S, dim)."""
        if text is None or isinstance(text, Tensor):
            attended: Tensor = super().__call__(attention, hidden, text, mask, rotary)
            return attended
        if isinstance(text, CachedText):
            text = text.keys(attention)
        elif isinstance(text, PackedText):
            key, value = attention.norm_k(attention.to_k(text.states)), attention.to_v(text.states)
            text = _by_head(attention, key, value, text.bias)
        query = attention.norm_q(attention.to_q(hidden)).unflatten(2, (attention.heads, -1))
        out = _attend(query, text, self._attention_backend).flatten(2, 3).type_as(query)
        for layer in attention.to_out:
            out = layer(out)
        return out


def _by_head(attention: Any, key: Tensor, value: Tensor, bias: Tensor | None) -> TextKeys:
    return TextKeys(key.unflatten(2, (attention.heads, -1)), value.unflatten(2, (attention.heads, -1)), bias)


def _attend(query: Tensor, text: TextKeys, kernel: AttentionBackendName | None) -> Tensor:
    if text.bias is None:
        return dispatch_attention_fn(query, text.key, text.value, backend=kernel)
    # Of the kernels only torch's own take a bias.
    bias = text.bias.to(query.dtype).expand(len(query), -1)
    return dispatch_attention_fn(query, text.key, text.value, bias, backend=AttentionBackendName.NATIVE)
