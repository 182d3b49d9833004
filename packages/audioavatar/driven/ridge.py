"""Ridge regression of mouth motion on audio: the baseline that every generator is held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audioavatar.driven.features import stacked

REACH = 4  # frames before and after that a frame is predicted from
STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class Ridge:
    """`weight` (D', K) of the stacked, standardised features and `bias` (K,); `gain` undoes how much a least-squares
    prediction shrinks motion. `r2` is the variance explained of clips left out, one after the other."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor
    strength: float
    r2: float
    gain: float = 1.0

    def __call__(self, features: Tensor) -> Tensor:
        """Features (T, D) -> coefficients (T, K)."""
        rows = (stacked(features, REACH) - self.mean) / self.deviation
        return self.bias + self.gain * (rows @ self.weight)


def fit_ridge(
    features: Sequence[Tensor], coefficients: Sequence[Tensor], strengths: Sequence[float] = STRENGTHS
) -> Ridge:
    """Fit clips of features (T, D) and coefficients (T, K); the strength is the best on clips left out."""
    rows = [stacked(clip, REACH).double() for clip in features]
    targets = [clip.double() for clip in coefficients]
    together = torch.cat(rows)
    mean, deviation = together.mean(0), together.std(0).clamp_min(1e-6)
    rows = [(each - mean) / deviation for each in rows]
    scored = [(_left_out(rows, targets, strength), strength) for strength in strengths]
    r2, strength = max(scored)
    bias = torch.cat(targets).mean(0)
    weight = _solve(torch.cat(rows), torch.cat(targets) - bias, strength)
    predicted = torch.cat(rows) @ weight
    gain = float(((torch.cat(targets) - bias).square().sum() / predicted.square().sum()).sqrt())
    return Ridge(mean.float(), deviation.float(), weight.float(), bias.float(), strength, r2, min(max(gain, 1.0), 1.3))


def _solve(rows: Tensor, target: Tensor, strength: float) -> Tensor:
    # Fewer rows than columns: the dual form.
    gram = rows @ rows.T + strength * torch.eye(len(rows), dtype=rows.dtype)
    return rows.T @ torch.linalg.solve(gram, target)


def _left_out(rows: Sequence[Tensor], targets: Sequence[Tensor], strength: float) -> float:
    """Share of the variance explained in clips that were left out, each in turn; -inf with a single clip's worth."""
    if len(rows) < 2:
        return 0.0
    error, variance = 0.0, 0.0
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        target = torch.cat([targets[j] for j in others])
        bias = target.mean(0)
        weight = _solve(torch.cat([rows[j] for j in others]), target - bias, strength)
        error += float((rows[i] @ weight + bias - targets[i]).square().sum())
        variance += float((targets[i] - bias).square().sum())
    return 1 - error / max(variance, 1e-12)
