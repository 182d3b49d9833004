"""Language layers of Q-Align in 8 or 4 bits: about 9 GB and 5.5 GB for the published model instead of 16.4 GB.

Weights are stored as whole numbers with one scale per row and group of 128 inputs, and are widened to the working
precision for each product; plain PyTorch, so it runs wherever the model runs. Activations keep their precision.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Bits = Literal[4, 8, 16]

_GROUP = 128


class PackedLinear(nn.Module):
    """A linear layer without bias from `weight` (out, in), kept in `bits` (4 or 8) per number."""

    packed: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bits: Bits) -> None:
        super().__init__()
        self.inputs, self.bits = weight.shape[1], bits
        padding = -self.inputs % _GROUP
        groups = F.pad(weight.float(), (0, padding)).unflatten(1, (-1, _GROUP))
        highest = 2 ** (bits - 1) - 1
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / highest
        whole = (groups / scale).round().to(torch.int8)
        if bits == 4:
            whole = (whole[..., ::2] + 8).to(torch.uint8) << 4 | (whole[..., 1::2] + 8).to(torch.uint8)
        self.register_buffer("packed", whole)
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) again, rounded, in the precision of the scale."""
        whole = self.packed
        if self.bits == 4:
            whole = torch.stack([whole >> 4, whole & 15], dim=-1).flatten(-2).to(torch.int8) - 8
        return (whole.to(self.scale.dtype) * self.scale).flatten(1)[:, : self.inputs]
