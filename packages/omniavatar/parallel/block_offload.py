"""Blocks that lie in the memory of the host and are on the device only while they run: two of them at a time.

The next block is copied while one runs. On a device "cpu" the copies are made all the same, to no use but a test's.
"""

import torch
from torch import Tensor, nn

from omniavatar.model.transformer import AvatarTransformer


def stream_blocks(model: AvatarTransformer, device: torch.device) -> None:
    """Move all of `model` to `device` but its blocks, and let these come one by one as they are called.

    For a model that is not trained. Weights must not be replaced afterwards: what the host keeps would come back.
    """
    blocks = model.dit.blocks
    model.dit.blocks = nn.ModuleList()
    model.to(device)
    model.dit.blocks = blocks
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    streamed = [_Streamed(block, device, copies) for block in blocks]
    for here, following in zip(streamed, [*streamed[1:], streamed[0]], strict=True):
        here.following = following
        here.block.register_forward_pre_hook(lambda block, given, here=here: here.enter())
        here.block.register_forward_hook(lambda block, given, out, here=here: here.leave())


class _Streamed:
    """One block: its weights on the host, and on the device from shortly before it runs until it has."""

    following: "_Streamed"

    def __init__(self, block: nn.Module, device: torch.device, copies: torch.cuda.Stream | None) -> None:
        self.block, self.device, self.copies = block, device, copies
        self._parameters = list(block.parameters())
        self._host = [parameter.data.cpu() for parameter in self._parameters]
        if copies is not None:
            self._host = [weight.pin_memory() for weight in self._host]
        self._here: list[Tensor] = []
        self.leave()

    def fetch(self) -> None:
        """Begin to copy the weights to the device, unless they are there."""
        if not self._here:
            # Copies made in inference mode could not become the data of a parameter.
            with torch.inference_mode(False), torch.cuda.stream(self.copies):
                self._here = [weight.to(self.device, non_blocking=True, copy=True) for weight in self._host]

    def enter(self) -> None:
        """Before the block runs: wait for its weights, and begin with those of the next."""
        self.fetch()
        if self.copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.copies)
            for weight in self._here:
                weight.record_stream(computing)
        for parameter, weight in zip(self._parameters, self._here, strict=True):
            parameter.data = weight
        self.following.fetch()

    def leave(self) -> None:
        """After the block has run: its weights are those of the host again."""
        for parameter, weight in zip(self._parameters, self._host, strict=True):
            parameter.data = weight
        self._here = []
