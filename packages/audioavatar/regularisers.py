"""Regularisers of moving particles: rigidity, distances, locality, spectrum, trajectories.

The forms are ours, the names are the paper's. Legend: T frames, N particles, k neighbours (audioavatar.graph).
Positions are (T, N, 3) or (T, N, 2), offsets those less the canonical ones.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from audioavatar.graph import Graph
from audioavatar.particles import BODY, FACE, HAND

CUTOFF: Mapping[int, float] = {BODY: 3.0, HAND: 6.0, FACE: 10.0}
"""Hz above which motion costs, by region; closing lips need up to 10 Hz of the 12.5 that 25 frames a second hold."""


def arap(moved: Tensor, canonical: Tensor, graph: Graph) -> Tensor:
    """As rigid as possible: mean squared edge that no rotation of each neighbourhood explains, to the canonical (N, D).

    Rotations are the best ones (Kabsch), without reflection, and carry no gradient.
    """
    rest = _take_neighbours(canonical[None], graph) - canonical[None, :, None]
    edge = _take_neighbours(moved, graph) - moved[:, :, None]
    with torch.no_grad():
        rotation = _rotations((graph.weight[..., None] * rest).transpose(-1, -2) @ edge)
    turned = rest @ rotation.transpose(-1, -2)
    return (graph.weight * (edge - turned).square().sum(-1)).sum(-1).mean()


def _rotations(covariance: Tensor) -> Tensor:
    """The rotation R (..., D, D) that best takes a to b, of sums of a b^T (..., D, D)."""
    if covariance.shape[-1] == 2:  # in the plane there is a closed form
        angle = torch.atan2(
            covariance[..., 0, 1] - covariance[..., 1, 0], covariance[..., 0, 0] + covariance[..., 1, 1]
        )
        sin, cos = angle.sin(), angle.cos()
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    u, _, v = torch.linalg.svd(covariance)
    v = v.transpose(-1, -2)
    sign = torch.ones_like(covariance[..., 0])
    sign[..., -1] = torch.linalg.det(v @ u.transpose(-1, -2)).sign()
    return (v * sign[..., None, :]) @ u.transpose(-1, -2)


def isometry(moved: Tensor, graph: Graph) -> Tensor:
    """Mean squared change of the distances to neighbours from frame to frame: the wording of the paper's summary.

    Blind to mirror images and to slow drift, which `arap` is not.
    """
    distance = (_take_neighbours(moved, graph) - moved[:, :, None]).norm(dim=-1)
    return (graph.weight * distance.diff(dim=0).square()).sum(-1).mean()


def locality(offset: Tensor, graph: Graph) -> Tensor:
    """Mean squared difference of each offset from the weighted mean of its neighbours'."""
    connected = (graph.weight.sum(1) > 0).to(offset)
    mean = (graph.weight[..., None] * _take_neighbours(offset, graph)).sum(-2)
    return ((offset - mean).square().sum(-1) * connected).mean()


def spectral(offset: Tensor, region: Tensor, fps: float = 25.0) -> Tensor:
    """Mean energy of offsets (T, N, D) above each region's cutoff, weighted 0 there to 1 at half the frame rate.

    A cosine transform, not a Fourier transform: a clip does not end where it began.
    """
    frames = len(offset)
    energy = (dct_matrix(frames).to(offset) @ offset.flatten(1)).reshape(offset.shape).square().sum(-1)
    frequency = torch.arange(frames).to(offset) * fps / (2 * frames)
    cutoff = torch.tensor([CUTOFF[r] for r in range(len(CUTOFF))]).to(offset)[region]
    excess = (frequency[:, None] - cutoff) / (fps / 2 - cutoff)
    return (excess.clamp_min(0).square() * energy).sum(0).mean()


def dct_matrix(frames: int) -> Tensor:
    """The orthonormal cosine transform (T, T), float64; row f is the frequency f / (2 T) of the frame rate."""
    t = torch.arange(frames, dtype=torch.float64)
    matrix = (math.pi / frames * (t + 0.5) * t[:, None]).cos() * math.sqrt(2 / frames)
    matrix[0] /= math.sqrt(2)
    return matrix


def trajectory(track: Tensor, predicted: Tensor, visible: Tensor | None = None, reduction: str = "sum") -> Tensor:
    """Image positions (T, M, 2) against tracked ones: with "sum" the paper's sum of squared distances, with "mean" a
    Huber loss averaged over what is `visible` (T, M), in units of the diagonal if the positions are."""
    seen = torch.ones_like(track[..., 0]) if visible is None else visible.to(track)
    if reduction == "sum":
        return ((predicted - track).square().sum(-1) * seen).sum()
    huber = F.huber_loss(predicted, track, reduction="none", delta=0.01).sum(-1)
    return (huber * seen).sum() / seen.sum().clamp_min(1)


def _take_neighbours(values: Tensor, graph: Graph) -> Tensor:
    """Values (T, N, D) -> (T, N, k, D)."""
    flat = values.index_select(1, graph.index.reshape(-1))
    return flat.reshape(values.shape[0], *graph.index.shape, values.shape[-1])
