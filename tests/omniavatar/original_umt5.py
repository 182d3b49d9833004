"""A second writing of the umT5 encoder under the tensor names of `models_t5_umt5-xxl-enc-bf16.pth`.

From its description: T5 with a table of relative positions in every layer, attention that is not scaled, a gated tanh
GELU and no biases. Weights are a flat dict.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
BUCKETS, FARTHEST = 32, 128


def random_weights(vocabulary: int, dim: int, heads: int, head_dim: int, inner: int, layers: int) -> Weights:
    """Every tensor of the file at these sizes."""
    shapes = {"token_embedding.weight": (vocabulary, dim), "norm.weight": (dim,)}
    for layer in range(layers):
        block = {"norm1.weight": (dim,), "norm2.weight": (dim,), "attn.o.weight": (dim, heads * head_dim)}
        block |= {f"attn.{part}.weight": (heads * head_dim, dim) for part in "qkv"}
        block |= {"pos_embedding.embedding.weight": (BUCKETS, heads), "ffn.fc2.weight": (dim, inner)}
        block |= {"ffn.gate.0.weight": (inner, dim), "ffn.fc1.weight": (inner, dim)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(7)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {
        name: 1 + 0.3 * value if "norm" in name else value if "embedding" in name else value / value.shape[1] ** 0.5
        for name, value in drawn.items()
    }


def rms(gain: Tensor, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def bucket(distance: int) -> int:
    """The row of the table for a key `distance` tokens after the query: exact up to 7, then by logarithm to 127."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = abs(distance)
    if far >= exact:
        far = min(exact + int(math.log(far / exact) / math.log(FARTHEST / exact) * (half - exact)), half - 1)
    return far + (half if distance > 0 else 0)


def attention(w: Weights, name: str, x: Tensor, mask: Tensor) -> Tensor:
    table = w[f"{name}.pos_embedding.embedding.weight"]
    length, heads = x.shape[1], table.shape[1]
    rows = torch.tensor([[bucket(key - query) for key in range(length)] for query in range(length)])
    query, key, value = ((x @ w[f"{name}.attn.{part}.weight"].T).unflatten(2, (heads, -1)) for part in "qkv")
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) + table[rows].permute(2, 0, 1)
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2) @ w[f"{name}.attn.o.weight"].T


def encode(w: Weights, ids: Tensor, mask: Tensor) -> Tensor:
    """Token ids (B, n) and their mask, True where there is text -> (B, n, dim), zeros where there is none."""
    x = w["token_embedding.weight"][ids]
    for layer in sorted({int(name.split(".")[1]) for name in w if name.startswith("blocks.")}):
        name = f"blocks.{layer}"
        x = x + attention(w, name, rms(w[f"{name}.norm1.weight"], x), mask)
        y = rms(w[f"{name}.norm2.weight"], x)
        gate = functional.gelu(y @ w[f"{name}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ w[f"{name}.ffn.fc1.weight"].T)) @ w[f"{name}.ffn.fc2.weight"].T
    return rms(w["norm.weight"], x) * mask[..., None]
