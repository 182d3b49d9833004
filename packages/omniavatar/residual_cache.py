"""Steps that are not computed: what the blocks added to the tokens one step before is added once more.

How much that changes from step to step is foretold by the timestep alone: a polynomial, fitted once per model, of the
relative change of the modulation made from it. So which steps are computed is known before the first.
Source: TeaCache (arXiv 2411.19108), whose polynomials for Wan2.1 these are; with them users of the released code take
thresholds of 0.05 to 0.15. The picture becomes another one: figures are in the README.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from omniavatar.flow import TIMESTEPS, sigma_schedule
from omniavatar.transformer import AvatarTransformer

DEGREE = 4
# Blocks and width of a model -> coefficients, highest power first.
POLYNOMIALS = {
    (30, 1536): (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    (40, 5120): (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
}


def polynomial_of(model: AvatarTransformer) -> tuple[float, ...]:
    """The published polynomial for a model of this size. Raises ValueError for any other than Wan2.1 1.3B and 14B."""
    config = model.dit.config
    size = config.num_layers, config.num_attention_heads * config.attention_head_dim
    if size not in POLYNOMIALS:
        raise ValueError(
            f"cache_threshold needs a polynomial, and none is known for {size[0]} blocks of width {size[1]}; set "
            "cache_polynomial to what omniavatar.residual_cache.fit_polynomial finds, or cache_threshold to 0."
        )
    return POLYNOMIALS[size]


@torch.inference_mode()
def modulation_changes(model: AvatarTransformer, steps: int, shift: float) -> list[float]:
    """Relative L1 change of the modulation from each step to the next, steps - 1 of them."""
    device = model.dit.scale_shift_table.device
    timesteps = sigma_schedule(steps, shift)[:-1].to(device) * TIMESTEPS
    return _changes([model.modulation(timestep[None]) for timestep in timesteps])


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


def fit_polynomial(changes: Sequence[float], residuals: Sequence[Tensor]) -> tuple[float, ...]:
    """The polynomial of a model, from one chunk of which every step was computed: `modulation_changes` of its schedule,
    and what the blocks added at each step (`KeptResidual.value`). Raises ValueError for fewer than six steps."""
    if len(residuals) != len(changes) + 1 or len(changes) <= DEGREE:
        raise ValueError(f"{len(residuals)} residuals, {len(changes)} changes; expected one more, of {DEGREE + 2} on.")
    return tuple(float(factor) for factor in np.polyfit(changes, _changes(residuals), DEGREE))


def _changes(values: Sequence[Tensor]) -> list[float]:
    return [((now - before).abs().mean() / before.abs().mean()).item() for before, now in pairwise(values)]
