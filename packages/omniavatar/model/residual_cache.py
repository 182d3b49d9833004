"""Steps that are not computed: what the blocks added to the tokens one step before is added once more.

How much that changes from step to step is foretold by the timestep alone: a polynomial, fitted once per model, of the
relative change of the modulation made from it. So which steps are computed is known before the first.
Source: TeaCache (arXiv 2411.19108), whose polynomials for Wan2.1 these are; with them users of the released code take
thresholds of 0.05 to 0.15. The picture becomes another one: figures are in the README.
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
    """Relative L1 changes from one computed step of a pass to the next: of the modulation, and of what the blocks added
    to the tokens."""

    modulation: float
    residual: float


def polynomial_of(model: AvatarTransformer) -> tuple[float, ...]:
    """The published polynomial for a model of this size. Raises ValueError for any other than Wan2.1 1.3B and 14B."""
    config = model.dit.config
    size = config.num_layers, config.num_attention_heads * config.attention_head_dim
    if size not in POLYNOMIALS:
        raise ValueError(
            f"cache_threshold needs a polynomial, and none is known for {size[0]} blocks of width {size[1]}; set "
            "cache_polynomial to what `omniavatar calibrate` finds, or cache_threshold to 0."
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
    """Whether each of len(changes) + 1 steps is computed: the first, the last, and every one at which the foretold
    changes since the step computed last reach `threshold`; 0 computes all."""
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
    """A list that every change is added to while this context is open, of sampling that computes every step but keeps
    residuals: a `cache_threshold` of 1 with the `cache_polynomial` (1,)."""
    found: list[Change] = []
    last: WeakKeyDictionary[ResidualCache, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def look(_: Any, given: tuple[Any, ...], out: Tensor) -> None:
        timestep, residual = given[1], given[-1]
        if residual is None:
            return
        now = model.modulation(timestep[:1]), residual.value
        if residual in last:
            modulation, added = last[residual]
            found.append(Change(_change(modulation, now[0]), _change(added, now[1], model.dit.ranks)))
        last[residual] = now

    hook = model.dit.register_forward_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def fit_polynomial(changes: Sequence[Change]) -> tuple[float, ...]:
    """The polynomial of a model, from what `measured_changes` saw. Raises ValueError for fewer than six steps."""
    seen = len({change.modulation for change in changes})
    if seen <= DEGREE:
        raise InputError(f"{seen} changes from step to step were measured; expected {DEGREE + 1}: {DEGREE + 2} steps.")
    modulation, residual = np.array(changes).T
    return tuple(float(factor) for factor in np.polyfit(modulation, residual, DEGREE))


def _change(before: Tensor, now: Tensor, ranks: SequenceGroup | None = None) -> float:
    """Relative L1 change, of all tokens where `ranks` hold a part each."""
    sums = torch.stack([torch.linalg.vector_norm(x, 1, dtype=torch.float32) for x in (now - before, before)])
    difference, size = (ranks.total(sums) if ranks else sums).tolist()
    return float(difference / size)
