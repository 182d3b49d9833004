"""Decoders from the embedding of a frame to the offsets of every particle: an MLP for anybody, a linear one for one.

Legend: T frames, N particles, K offsets of a particle, E width of a region's embedding, C components.
"""

import torch
from torch import Tensor, nn

from audioavatar.driven.encoder import PLACE, TRAITS, Traits, place_code
from audioavatar.particles import BODY, regions


class ParticleDecoder(nn.Module):
    """D(x^r, x^body, phi, PE(mu)) -> offsets; the last layer is zero, so that the first render is the canonical one."""

    def __init__(self, offsets: int, width: int = 128, embedding: int = 64) -> None:
        super().__init__()
        self.embedding = embedding
        self.traits = Traits()
        self.point = nn.Linear(PLACE + TRAITS, width)
        self.frame = nn.Linear(2 * embedding, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.exit = nn.Linear(width, offsets)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, embedded: Tensor, place: Tensor, part: Tensor) -> Tensor:
        """Embedded motion (T, 3 E), canonical places (N, 3) and parts (N,) -> offsets (T, N, K)."""
        by_region = embedded.unflatten(-1, (3, self.embedding))
        body = by_region[:, BODY : BODY + 1].expand(-1, 3, -1)
        frames = self.frame(torch.cat([by_region, body], dim=-1))  # (T, 3, W)
        product = frames[:, regions(part)] * self.point(self.traits(place, part))
        return self.exit(product + self.layers(product))


class LinearDecoder(nn.Module):
    """dG = mean + sum_k x_k B_k + a small residual, of the particles it was made of.

    B begins as the principal components of the motion, the residual at zero: the best linear decoder before any
    training.
    """

    def __init__(self, mean: Tensor, components: Tensor, scale: Tensor, place: Tensor, width: int = 32) -> None:
        super().__init__()
        self.scale: Tensor
        self.code: Tensor
        self.mean, self.components = nn.Parameter(mean), nn.Parameter(components)
        self.register_buffer("scale", scale)
        self.register_buffer("code", place_code(place))
        self.point, self.frame = nn.Linear(PLACE, width), nn.Linear(len(scale), width)
        self.exit = nn.Linear(width, mean.shape[-1])
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    @classmethod
    def of(cls, offset: Tensor, place: Tensor, components: int) -> "LinearDecoder":
        """The principal components of offsets (T, N, K) of particles at `place` (N, 3)."""
        rows = offset.flatten(1)
        mean = rows.mean(0)
        _, values, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        scale = values[:components] / max(len(rows) - 1, 1) ** 0.5
        shape = offset.shape[1:]
        return cls(mean.reshape(shape), axes[:components].reshape(-1, *shape), scale, place)

    def encode(self, offset: Tensor) -> Tensor:
        """Offsets (T, N, K) -> x (T, C), of unit variance on what the decoder was made of."""
        return (offset - self.mean).flatten(1) @ self.components.flatten(1).T / self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x (T, C) -> offsets (T, N, K)."""
        linear = self.mean + torch.einsum("tk,knd->tnd", x * self.scale, self.components)
        hidden = nn.functional.gelu(self.frame(x)[:, None] + self.point(self.code))
        return linear + self.exit(hidden)
