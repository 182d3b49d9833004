"""Skipped steps (TeaCache): the residual of the blocks is reused while it is predicted to change little.

The change from step to step is predicted from the timestep alone, by a polynomial, fitted once per model, of the
relative change of the modulation. So the steps to compute are known before the first one.
Source: TeaCache (arXiv 2411.19108), with its polynomials for Wan2.1; users of the released code set thresholds of 0.05
to 0.15. The video changes: figures are in eval/results/generation.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from omniavatar.model.cache import ResidualCache
from omniavatar.model.flow import TIMESTEPS, sigma_schedule
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.sequence import SequenceGroup

DEGREE = 4
# Blocks and width of a model -> coefficients, highest power first.
POLYNOMIALS = {
    (30, 1536): (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    (40, 5120): (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
}


class Change(NamedTuple):
    """Relative L1 changes from one computed step of a branch to the next: of the modulation, and of the residual."""

    modulation: float
    residual: float


def polynomial_of(model: AvatarTransformer) -> tuple[float, ...]:
    """The published polynomial for a model of this size. Raises ValueError for any other than Wan2.1 1.3B and 14B."""
    config = model.dit.config
    size = config.num_layers, config.num_attention_heads * config.attention_head_dim
    if size not in POLYNOMIALS:
        raise InputError(
            f"cache_threshold needs a polynomial, and none is known for {size[0]} blocks of width {size[1]}; set "
            "cache_polynomial to the one that `omniavatar calibrate` fits, or cache_threshold to 0."
        )
    return POLYNOMIALS[size]


@torch.inference_mode()
def modulation_changes(model: AvatarTransformer, steps: int, shift: float) -> list[float]:
    """Relative L1 change of the modulation from each step to the next, steps - 1 of them."""
    device = model.dit.scale_shift_table.device
    timesteps = sigma_schedule(steps, shift)[:-1].to(device) * TIMESTEPS
    modulations = [model.modulation(timestep[None]) for timestep in timesteps]
    return [_change(before, now) for before, now in pairwise(modulations)]


def plan_steps(changes: Sequence[float], threshold: float, polynomial: Sequence[float]) -> list[bool]:
    """Whether each of len(changes) + 1 steps is computed: the first, the last, and every step at which the predicted
    changes since the last computed step add up to `threshold`; 0 computes all."""
    computed, gathered = [True], 0.0
    for change in changes:
        gathered += float(np.polyval(polynomial, change))
        computed.append(gathered >= threshold)
        if computed[-1]:
            gathered = 0.0
    computed[-1] = True
    return computed


@contextmanager
def measured_changes(model: AvatarTransformer) -> Iterator[list[Change]]:
    """A list to which changes are appended while the context is open. Sampling has to compute every step and store
    residuals: `cache_threshold` 1 with the `cache_polynomial` (1,)."""
    changes: list[Change] = []
    last: WeakKeyDictionary[ResidualCache, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def record(_: Any, arguments: tuple[Any, ...], out: Tensor) -> None:
        timestep, residual = arguments[1], arguments[-1]
        if residual is None:
            return
        now = model.modulation(timestep[:1]), residual.value
        if residual in last:
            modulation, added = last[residual]
            changes.append(Change(_change(modulation, now[0]), _change(added, now[1], model.dit.ranks)))
        last[residual] = now

    hook = model.dit.register_forward_hook(record)
    try:
        yield changes
    finally:
        hook.remove()


def fit_polynomial(changes: Sequence[Change]) -> tuple[float, ...]:
    """The polynomial of a model, fitted to `measured_changes`. Raises ValueError for fewer than six steps."""
    count = len({change.modulation for change in changes})
    if count <= DEGREE:
        raise InputError(f"{count} changes from step to step were measured; expected {DEGREE + 1}: {DEGREE + 2} steps.")
    modulation, residual = np.array(changes).T
    return tuple(float(factor) for factor in np.polyfit(modulation, residual, DEGREE))


def _change(before: Tensor, now: Tensor, ranks: SequenceGroup | None = None) -> float:
    """Relative L1 change; over the tokens of all `ranks` where these share a sample."""
    sums = torch.stack([torch.linalg.vector_norm(x, 1, dtype=torch.float32) for x in (now - before, before)])
    difference, size = (ranks.total(sums) if ranks else sums).tolist()
    return float(difference / size)
