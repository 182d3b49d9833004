"""Score distillation from any diffusion teacher: what its output says about noise, and the gradients SDS and VSD.

The note's formula subtracts the noise that was added, which is SDS; VSD (Wang et al. 2023, ProlificDreamer) subtracts
the estimate of a second network that follows the renders. No stage uses them yet. Legend: z = alpha x + sigma eps.
"""

from typing import Literal

from torch import Tensor

Parameterisation = Literal["noise", "score", "flow"]
"""What a teacher predicts: eps; the score of z; or the velocity eps - x of a rectified flow (alpha = 1 - sigma)."""


def noise_estimate(output: Tensor, z: Tensor, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """eps as a teacher's `output` for z implies it."""
    if parameterisation == "noise":
        return output
    if parameterisation == "score":
        return -sigma * output
    return z + (1 - sigma) * output


def clean_estimate(output: Tensor, z: Tensor, alpha: float, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """x as a teacher's `output` for z implies it."""
    if parameterisation == "flow":
        return z - sigma * output
    return (z - sigma * noise_estimate(output, z, sigma, parameterisation)) / alpha


def distillation_gradient(teacher: Tensor, reference: Tensor, weight: float) -> Tensor:
    """w (eps_teacher - eps_reference), through neither of which a gradient goes.

    SDS where the reference is the noise that was added, VSD where it is the estimate of a network trained on the
    current renders.
    """
    return weight * (teacher - reference).detach()


def distillation_loss(z: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose derivative in z is `gradient`: 1/2 |z - stopgrad(z - g)|^2."""
    return 0.5 * (z - (z - gradient).detach()).square().sum()
