"""Vision model and visual abstractor of mPLUG-Owl2, as Q-Align uses them, with the key names of one-align.

Image (B, 3, S, S) -> vision model (B, P, V) -> visual abstractor (B, Q + 1, D).
P = patches + class token, V = vision width, Q = learnable queries, D = language width.
Numbers follow the authors' code (`q_align/model`); where it does something unusual a comment says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VisionConfig:
    """`visual_config.visual_model` of the published config.json; the defaults are ViT-L/14 at 448 px."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class AbstractorConfig:
    """`visual_config.visual_abstractor`; `grid_size` is the side of the patch grid."""

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_learnable_queries: int = 64
    grid_size: int = 32
    layer_norm_eps: float = 1e-6


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H * d) -> (B, H, L, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H * d)"""
    return x.transpose(1, 2).flatten(2)


def stack(make: Callable[[], nn.Module], count: int) -> nn.ModuleList:
    """`count` layers of their own."""
    return nn.ModuleList(make() for _ in range(count))


def through(layers: nn.Module, x: Tensor, *context: Any) -> Tensor:
    """One layer after the other, each with the same context."""
    for layer in layers.children():
        x = layer(x, *context)
    return x


# ---- vision model -------------------------------------------------------------------------------------------------


class VisionEmbeddings(nn.Module):
    """Patches and class token with learnt positions, normalised: (B, 3, S, S) -> (B, P, V)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        patches = (config.image_size // patch) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        classes = self.cls_token.expand(len(pixels), -1, -1)
        return self.pre_layernorm(torch.cat([classes, patches], dim=1) + self.position_embedding)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # the published rows are ordered head, then query/key/value: not three blocks of all heads
        mixed = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.dense(join_heads(F.scaled_dot_product_attention(*mixed.unbind(0))))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # QuickGELU of CLIP


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionModel(nn.Module):
    """CLIP's vision transformer, all tokens normalised at the end: (B, 3, S, S) -> (B, P, V)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = nn.ModuleDict({"layers": stack(lambda: VisionLayer(config), config.num_hidden_layers)})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(through(self.encoder["layers"], self.embeddings(pixels)))


# ---- visual abstractor ----------------------------------------------------------------------------------------------


class AbstractorAttention(nn.Module):
    """Learnable queries attend to themselves and to the image; the position tables are stored in the checkpoint."""

    q_pos_embed: Tensor
    k_pos_embed: Tensor

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        queries = torch.arange(config.num_learnable_queries, dtype=torch.float64)
        self.register_buffer("q_pos_embed", sine_positions(queries, width).float())
        self.register_buffer("k_pos_embed", grid_positions(config.grid_size, width).float())

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        keys = torch.cat([queries, image], dim=1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        q = split_heads(self.query(queries + self.q_pos_embed), self.heads)
        k, v = split_heads(self.key(keys + positions), self.heads), split_heads(self.value(keys), self.heads)
        return join_heads(F.scaled_dot_product_attention(q, k, v))


class AbstractorMLP(nn.Module):
    """Gated SiLU with a norm inside."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_ln = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(x)) * self.w3(x)))


class AbstractorOutput(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = AbstractorMLP(config)

    def forward(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = residual + self.out_proj(attended)
        return x + self.mlp(self.norm2(x))


class AbstractorCrossAttention(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)  # these three norms keep PyTorch's default epsilon
        self.normk = nn.LayerNorm(config.hidden_size)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        queries = self.norm1(queries)  # the residual starts from the *normalised* queries
        return self.output(self.attention(queries, self.normk(image)), queries)


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = AbstractorCrossAttention(config)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        return self.crossattention(queries, image)


class VisualAbstractor(nn.Module):
    """Q learnable queries read the image, in the language width, with an end token: (B, P, V) -> (B, Q + 1, D)."""

    def __init__(self, config: AbstractorConfig, language_width: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": stack(lambda: AbstractorLayer(config), config.num_hidden_layers)})
        self.visual_fc = nn.Linear(config.hidden_size, language_width)
        self.query_embeds = nn.Parameter(torch.zeros(1, config.num_learnable_queries, config.hidden_size))
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, language_width))

    def forward(self, image: Tensor) -> Tensor:
        queries = through(self.encoder["layers"], self.query_embeds.expand(len(image), -1, -1), image)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(len(image), -1, -1)], dim=1)


def sine_positions(positions: Tensor, width: int) -> Tensor:
    """Sine half then cosine half over frequencies 10000^(-2i / width): (N,) -> (N, width)."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_positions(side: int, width: int) -> Tensor:
    """Zeros for the class token, then per patch, row by row, a column half and a row half: (side^2 + 1, width)."""
    steps = torch.arange(side)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    halves = [sine_positions(axis.flatten(), width // 2) for axis in (columns, rows)]
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.cat(halves, dim=1)])
