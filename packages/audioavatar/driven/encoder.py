"""Encoders of the joint embedding: E_X from particle motion, region by region, and the audio's.

Both see particles by what they are, not by their number: any particle of any avatar has features that follow from its
place and its label, so that new people need no training. Legend: B clips, T frames, N particles, K offsets of a
particle, E width of a region's embedding.
"""

import math

import torch
from torch import Tensor, nn

from audioavatar.particles import BODY, FACE, HAND, Part, regions

REGIONS = (BODY, FACE, HAND)
TRAITS = 16  # phi
_OCTAVES = 3
PLACE = 3 * (1 + 2 * _OCTAVES)


def place_code(place: Tensor) -> Tensor:
    """Places (N, 3), of about unit size, with their sines and cosines -> (N, 21)."""
    angle = place[..., None] * math.pi * 2.0 ** torch.arange(_OCTAVES, device=place.device)
    return torch.cat([place, angle.sin().flatten(-2), angle.cos().flatten(-2)], dim=-1)


def sinusoids(position: Tensor, width: int) -> Tensor:
    """Positions (...) in 0..1 -> (..., W)."""
    frequency = torch.exp(torch.linspace(0, math.log(1000), width // 2)).to(position.device)
    angle = 2 * math.pi * position[..., None].float() * frequency / 4
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Traits(nn.Module):
    """phi: 16 numbers of a particle, predicted from its canonical place and its label."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(max(Part) + 1, 8)
        self.layers = nn.Sequential(nn.Linear(PLACE + 8, 32), nn.GELU(), nn.Linear(32, TRAITS))

    def forward(self, place: Tensor, part: Tensor) -> Tensor:
        """Places (N, 3) and parts (N,) -> [PE(mu), phi] (N, 37)."""
        code = place_code(place)
        return torch.cat([code, self.layers(torch.cat([code, self.label(part)], dim=-1))], dim=-1)


class ParticleEncoder(nn.Module):
    """E_X: offsets of any number of particles to one vector per frame and region, in whatever order they come.

    Each particle goes through the same layers; attention pools inside each region.
    """

    def __init__(self, offsets: int, width: int = 128, out: int = 64) -> None:
        super().__init__()
        self.out = out
        self.traits = Traits()
        # What an offset means depends on where it is: they are multiplied, which a sum of both learns much later.
        self.place, self.offset = nn.Linear(PLACE + TRAITS, width), nn.Linear(offsets, width)
        self.point = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.scores = nn.Linear(width, len(REGIONS))
        self.exits = nn.ModuleList([nn.Linear(width, out) for _ in REGIONS])

    def forward(self, place: Tensor, part: Tensor, offset: Tensor) -> Tensor:
        """Canonical places (N, 3), parts (N,), offsets (T, N, K) -> (T, 3 E): body, face, hands; 0 where a region has
        no particles."""
        product = self.place(self.traits(place, part)) * self.offset(offset)
        hidden = product + self.point(product)
        scores, region = self.scores(hidden), regions(part)
        pooled = []
        for r, leave in zip(REGIONS, self.exits, strict=True):
            own = region == r
            if not bool(own.any()):
                pooled.append(offset.new_zeros(len(offset), self.out))
                continue
            share = scores[:, own, r : r + 1].softmax(dim=1)
            pooled.append(leave((share * hidden[:, own]).sum(dim=1)))
        return torch.cat(pooled, dim=-1)


class AudioEmbedding(nn.Module):
    """Audio features to the embedding of each frame: normalised, narrowed, two convolutions over time."""

    def __init__(self, features: int, width: int = 256, out: int = 64) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.time = nn.Sequential(
            nn.GELU(), nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"),
            nn.GELU(), nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"), nn.GELU(),
        )  # fmt: skip
        self.exit = nn.Linear(width, out)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, E)."""
        return self.exit(self.time(self.entry(features).transpose(1, 2)).transpose(1, 2))
