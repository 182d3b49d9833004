"""Block offload: blocks stay in host memory and are on the device only while they run, two at a time.

The next block is copied while one runs. On device "cpu" the copies are made too, which the text encoder needs where its
file has another precision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def stream_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    device: torch.device,
    dtype: torch.dtype | None = None,
    mapped: Sequence[nn.Module] | None = None,
) -> None:
    """Move `model` to `device` except for its `blocks`, which are copied one by one as they are called, as `dtype`.

    The blocks' weights are put into page-locked memory, from which a GPU copies faster and while it computes. With
    `mapped`, for a model that is called now and then, they stay where they are, such as in the map of a file, and so do
    the modules in it; none is fetched for the next call. For inference only. Weights must not be replaced afterwards:
    the copies in host memory would overwrite them.
    """
    staying = {id(x) for part in (*blocks, *(mapped or ())) for x in (*part.parameters(), *part.buffers())}

    def move(x: Tensor) -> Tensor:
        if id(x) in staying:
            return x
        return x.to(device, dtype) if isinstance(x, nn.Parameter) else x.to(device)

    model._apply(move)
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    streamed = [_Streamed(block, device, copies, dtype, pin=mapped is None) for block in blocks]
    after_last = streamed[0] if mapped is None else None
    for current, following in zip(streamed, [*streamed[1:], after_last], strict=True):
        current.following = following
        current.block.register_forward_pre_hook(lambda *_, current=current: current.enter())
        current.block.register_forward_hook(lambda *_, current=current: current.leave())


class _Streamed:
    """One block with its weights on the host, and on the device from shortly before it runs until it has run."""

    following: "_Streamed | None"

    def __init__(
        self,
        block: nn.Module,
        device: torch.device,
        copies: torch.cuda.Stream | None,
        dtype: torch.dtype | None = None,
        pin: bool = True,
    ) -> None:
        self.block, self.device, self.copies, self.dtype = block, device, copies, dtype
        self._parameters = list(block.parameters())
        self._host = [parameter.data.cpu() for parameter in self._parameters]
        if copies is not None and pin:
            self._host = [weight.pin_memory() for weight in self._host]
        self._on_device: list[Tensor] = []
        self.leave()

    def fetch(self) -> None:
        """Start copying the weights to the device, unless they are there."""
        if not self._on_device:
            # A tensor created in inference mode cannot become the data of a parameter.
            with torch.inference_mode(False), torch.cuda.stream(self.copies):
                self._on_device = [
                    weight.to(self.device, self.dtype, non_blocking=True, copy=True) for weight in self._host
                ]

    def enter(self) -> None:
        """Before the block runs: wait for its weights, and start copying those of the next block."""
        self.fetch()
        if self.copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.copies)
            for weight in self._on_device:
                weight.record_stream(computing)
        for parameter, weight in zip(self._parameters, self._on_device, strict=True):
            parameter.data = weight
        if self.following is not None:
            self.following.fetch()

    def leave(self) -> None:
        """After the block has run: its parameters point to host memory again."""
        for parameter, weight in zip(self._parameters, self._host, strict=True):
            parameter.data = weight
        self._on_device = []
