"""Audio layers of the transformer: the paper's, and the two variants it is compared with.

Shapes: B batch, T latent frames, P = (h/2) * (w/2) tokens of a latent frame, F pixel frames, C audio width, N blocks.

"multi"            one projection of the packed audio for each block 2 .. N/2: the paper's multi-hierarchical embedding
"single"           one projection, at the middle block alone: the ablation row "single-layer" of the paper
"cross_attention"  in each block 2 .. N/2 the tokens attend to the four audio states of their own latent frame

The output of a layer is added to the tokens before its block runs; it is zero for a new layer.
"""

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.constants import FRAMES_PER_LATENT
from common.errors import InputError
from omniavatar.config import AudioEntry, audio_blocks
from omniavatar.model.audio_pack import AudioPack, AudioTokens

HEAD_DIM = 64  # of the cross-attention


class FrameProjection(nn.Module):
    """W s + b of the packed audio s: every token of a latent frame gets the same vector. Zero at initialisation."""

    def __init__(self, hidden: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, hidden))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, packed: Tensor) -> Tensor:
        """(B, T, P, dim), (B, T, hidden) -> (B, T, 1, dim)."""
        return functional.linear(packed, self.weight, self.bias)[:, :, None]


class FrameAttention(nn.Module):
    """Attention from the tokens of a latent frame to its audio tokens. Zero at initialisation."""

    def __init__(self, hidden: int, dim: int):
        super().__init__()
        self.heads = hidden // HEAD_DIM if hidden % HEAD_DIM == 0 else 1
        self.q, self.o = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        # No bias of the key: it would add the same to every score of a query, which softmax cancels.
        self.k, self.v = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden)
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.o.bias)

    def forward(self, tokens: Tensor, packed: Tensor) -> Tensor:
        """(B, T, P, dim), (B, T, 4, hidden) -> (B, T, P, dim)."""
        normed = functional.layer_norm(tokens, tokens.shape[-1:]).to(self.q.weight.dtype)
        query, key, value = (self._by_head(x) for x in (self.q(normed), self.k(packed), self.v(packed)))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.o(attended.transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])

    def _by_head(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B T, heads, P or 4, head)


def audio_modules(
    entry: AudioEntry, num_layers: int, dim: int, audio_dim: int, hidden: int | None = None
) -> tuple[AudioPack | AudioTokens, nn.ModuleList]:
    """The module that packs the audio, and one new audio layer for each block of `audio_blocks`.

    `hidden`: width of the packed audio; None is 32 (the published one), and 512 for the cross-attention, which then has
    fewer parameters than the LoRA at 14B. Raises ValueError for an entry that is none of the three.
    """
    blocks = audio_blocks(num_layers, entry)
    if entry == "cross_attention":
        hidden = hidden or 512
        return AudioTokens(audio_dim, hidden), nn.ModuleList(FrameAttention(hidden, dim) for _ in blocks)
    if entry not in get_args(AudioEntry):
        raise InputError(f"Audio entry {entry!r}; expected one of {', '.join(get_args(AudioEntry))}.")
    hidden = hidden or 32
    return AudioPack(audio_dim, hidden), nn.ModuleList(FrameProjection(hidden, dim) for _ in blocks)


def audio_tensor_names(entry: AudioEntry, num_layers: int) -> list[str]:
    """Names of all tensors of the audio modules, in a model and in an adapter file."""
    with torch.device("meta"):
        pack, layers = audio_modules(entry, num_layers, dim=1, audio_dim=1, hidden=1)
    return [f"audio_proj.{name}" for name in pack.state_dict()] + [f"audio_cond_projs.{n}" for n in layers.state_dict()]


def audio_width(projection: Tensor, entry: AudioEntry) -> int:
    """Width C of the audio states that `audio_proj.proj.weight` (hidden, inputs) takes."""
    return projection.shape[1] // (1 if entry == "cross_attention" else FRAMES_PER_LATENT)
