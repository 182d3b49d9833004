"""Neighbour graph of particles, restricted by their labels.

A plain Euclidean graph ties the upper to the lower lip and finger to finger; rigidity then forbids just the motion that
speech and hands consist of.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from audioavatar.particles import HAND, SHEETS, Part, regions

NEIGHBOURS = 8
_ROWS = 1024  # of the matrix of distances that are held at once
_APART = (
    (Part.UPPER_LIP, Part.LOWER_LIP),
    (Part.UPPER_LIP, Part.FACE_LOWER),
    (Part.LOWER_LIP, Part.FACE_UPPER),
    (Part.LEFT_UPPER_LID, Part.LEFT_LOWER_LID),
    (Part.RIGHT_UPPER_LID, Part.RIGHT_LOWER_LID),
)


@dataclass(frozen=True)
class Graph:
    """`index` (N, k) of the neighbours and `weight` (N, k) of the edges, rows of which sum to 1, or to 0 for a particle
    without neighbours; an edge of weight 0 is none."""

    index: Tensor
    weight: Tensor


def neighbour_graph(
    mean: Tensor, part: Tensor | None = None, k: int = NEIGHBOURS, lip_line: Tensor | None = None
) -> Graph:
    """The k nearest permitted neighbours of each particle, with weights exp(-d^2 / mean d^2).

    `part` (N,) forbids pairs of labels (None: a plain Euclidean graph), and `lip_line` (P, 2), points in x and y from
    corner to corner of the mouth, every edge across it.
    """
    count = len(mean)
    k = min(k, max(count - 1, 0))
    allowed = None if part is None else allowed_parts(part)
    nearest, index = mean.new_zeros(count, k), torch.zeros(count, k, dtype=torch.int64, device=mean.device)
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        # Not by the formula with products, which is not exact for points that lie close together.
        distance = torch.cdist(mean[rows], mean, compute_mode="donot_use_mm_for_euclid_dist").square()
        distance[torch.arange(rows.stop - start), torch.arange(start, rows.stop)] = torch.inf
        if part is not None and allowed is not None:
            distance[~allowed[part[rows]][:, part]] = torch.inf
        nearest[rows], index[rows] = distance.topk(k, largest=False)
    edge = nearest.isfinite()
    if lip_line is not None:
        edge &= ~_crosses(mean[:, None, :2].expand(count, k, 2), mean[index][..., :2], lip_line)
    index = torch.where(edge, index, torch.arange(count, device=mean.device)[:, None])
    scale = nearest[edge].mean() if bool(edge.any()) else 1.0
    weight = torch.where(edge, (-nearest / scale).exp(), 0.0)
    return Graph(index, weight / weight.sum(1, keepdim=True).clamp_min(1e-12))


def allowed_parts(part: Tensor) -> Tensor:
    """A symmetric table (P, P) of the pairs of labels that may be neighbours, up to the largest in `part`."""
    labels = torch.arange(max(int(part.max()) + 1 if len(part) else 0, max(Part) + 1), device=part.device)
    same = labels[:, None] == labels
    table = torch.ones_like(same)
    for first, second in _APART:
        table[first, second] = table[second, first] = False
    for sheet in SHEETS:
        table[sheet, :] = table[:, sheet] = False
    finger = labels >= Part.LEFT_FINGER_1
    table &= ~(finger[:, None] & finger)
    hand = regions(labels) == HAND
    # A hand hangs on its arm, and on nothing else that it may pass in front of.
    own = (labels == Part.LEFT_ARM) | (labels == Part.RIGHT_ARM) | hand
    table &= ~(hand[:, None] & ~own) & ~(hand & ~own[:, None])
    return table | same


def laplacian(graph: Graph) -> Tensor:
    """The symmetric graph Laplacian (N, N), dense: for the few thousand particles of a fit."""
    count = len(graph.index)
    adjacency = graph.weight.new_zeros(count, count)
    adjacency.scatter_add_(1, graph.index, graph.weight)
    adjacency.fill_diagonal_(0)
    adjacency = (adjacency + adjacency.T) / 2
    return torch.diag(adjacency.sum(1)) - adjacency


def _crosses(start: Tensor, end: Tensor, line: Tensor) -> Tensor:
    """Whether segments (..., 2) to (..., 2) cross a polyline (P, 2) in any of its pieces."""

    def side(a: Tensor, b: Tensor, point: Tensor) -> Tensor:
        edge, to = b - a, point - a
        return edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0]

    crossed = torch.zeros(start.shape[:-1], dtype=torch.bool, device=start.device)
    for a, b in zip(line[:-1], line[1:], strict=True):
        apart = (side(a, b, start) > 0) != (side(a, b, end) > 0)
        crossed |= apart & ((side(start, end, a) > 0) != (side(start, end, b) > 0))
    return crossed
