"""Sequence parallelism (Ulysses): each rank holds a part of the tokens of a sample, self-attention sees them all.

Shapes: B samples, S tokens of a sample, P ranks of a group, s = ceil(S / P) tokens of a rank, H heads, D of a head.
Operations on single tokens get (B, s, ...). For self-attention the ranks exchange, so that each has all S tokens of
H / P heads. The s P - S tokens that pad the last parts are cut off before attention and in the output.
Source: DeepSpeed Ulysses (arXiv 2309.14509).
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import functional


class Rotary(NamedTuple):
    """Tables (1, s, 1, D) for a rank's part of `tokens` tokens; the count is here because blocks may be recomputed."""

    cosine: Tensor
    sine: Tensor
    tokens: int


class SequenceGroup:
    """The ranks that share the tokens of each sample; all of them have to call each method together."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def part(self, x: Tensor) -> Tensor:
        """This rank's part of a tensor that every rank has whole: (B, S, ...) -> (B, s, ...), zero-padded."""
        length = -(-x.shape[1] // self.size)
        own = x[:, self.rank * length : (self.rank + 1) * length]
        return _padded(own, length)

    def whole(self, part: Tensor, tokens: int) -> Tensor:
        """The parts of all ranks, gathered on every rank: (B, s, ...) -> (B, S, ...)."""
        gathered: Tensor = _Gather.apply(part, self)
        return gathered.flatten(0, 1).unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)[:, :tokens]

    def total(self, x: Tensor) -> Tensor:
        """The sum of `x` over ranks, without gradient."""
        summed = x.clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def heads_for_tokens(self, part: Tensor, tokens: int) -> Tensor:
        """(B, s, H, D), own tokens -> (B, S, H / P, D), all tokens of own heads."""
        by_rank = part.unflatten(2, (self.size, -1)).movedim(2, 0)
        return _Exchange.apply(by_rank, self).transpose(0, 1).flatten(1, 2)[:, :tokens]

    def tokens_for_heads(self, x: Tensor) -> Tensor:
        """(B, S, H / P, D), all tokens of own heads -> (B, s, H, D), own tokens."""
        length = -(-x.shape[1] // self.size)
        by_rank = _padded(x, self.size * length).unflatten(1, (self.size, -1)).movedim(1, 0)
        return _Exchange.apply(by_rank, self).movedim(0, 2).flatten(2, 3)


class _Exchange(torch.autograd.Function):
    """All-to-all (P, ...) -> (P, ...): entry r is sent to rank r and replaced by what rank r sent. Its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: SequenceGroup) -> Tensor:
        ctx.ranks = ranks
        return _exchanged(x, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradients[0], ctx.ranks), None


def _exchanged(x: Tensor, ranks: SequenceGroup) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=ranks.group)
    return received


class _Gather(torch.autograd.Function):
    """All-gather (...) -> (P, ...). All ranks compute the same loss from it, and the engine averages their gradients.

    The gradient of a rank covers its own part alone: their sum is right, their mean P times too small, so it is scaled
    by P.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: SequenceGroup) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        dist.all_gather(parts, x.contiguous(), group=ranks.group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.ranks.rank] * ctx.ranks.size, None


def _padded(x: Tensor, length: int) -> Tensor:
    """(B, up to `length`, ...) -> (B, length, ...), zero-padded at the end."""
    missing = length - x.shape[1]
    return functional.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x


class SharedSelfAttention:
    """Self-attention of a diffusers Wan block over tokens shared by several ranks: the processor of its `attn1`."""

    _attention_backend: Any = None  # diffusers sets both on every processor
    _parallel_config: Any = None

    def __init__(self, ranks: SequenceGroup) -> None:
        self.ranks = ranks

    def __call__(self, attention: Any, hidden: Tensor, text: None, mask: None, rotary: Rotary) -> Tensor:
        """(B, s, dim) -> (B, s, dim)."""
        value = attention.to_v(hidden).unflatten(2, (attention.heads, -1))
        query, key = (
            # Cast to the precision of attention, so that no more than needed is sent.
            _rotated(norm(linear(hidden)).unflatten(2, (attention.heads, -1)), rotary).to(value.dtype)
            for norm, linear in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
        )
        fused = torch.cat([query, key, value], dim=-1)  # one exchange instead of three
        query, key, value = self.ranks.heads_for_tokens(fused, rotary.tokens).chunk(3, dim=-1)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return self._out(attention.to_out, self.ranks.tokens_for_heads(attended).flatten(2, 3))

    @staticmethod
    def _out(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
        for layer in layers:
            hidden = layer(hidden)
        return hidden


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """(B, s, H, D) with rotary embedding: each pair of neighbouring channels rotated by its angle."""
    cosine, sine = rotary.cosine[..., 0::2], rotary.sine[..., 1::2]
    first, second = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).type_as(x)
