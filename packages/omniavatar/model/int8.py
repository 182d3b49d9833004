"""Weights in 8 bits: each row of a linear's matrix as integers from -127 to 127 and one scale.

The matrix is restored for each product: at 30,000 tokens that is under a hundredth of the product's work, and the
activations stay as exact as without. Nothing is calibrated. Integers and scales are ordinary parameters, so that blocks
are moved and offloaded like any other.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127


class Int8Linear(nn.Module):
    """A frozen linear with `weight` int8 (outputs, inputs) and `scale` float32 (outputs, 1)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    def restored(self) -> Tensor:
        """The matrix (outputs, inputs) in the precision of the linear that it was made from."""
        return (self.weight * self.scale).to(self.dtype)  # in float32: a rounded scale would change whole rows alike

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return functional.linear(x, self.restored(), self.bias)


def quantize_linears(module: nn.Module) -> None:
    """Replace every linear in `module`, such as a transformer block, LoRA matrices aside."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not isinstance(parent, nn.ModuleDict):  # peft keeps its LoRA in these
                setattr(parent, name, Int8Linear(layer))
