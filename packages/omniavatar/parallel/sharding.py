"""Weights in pieces: each process keeps its part of every block, and all gather a block while it runs.

Two blocks are whole at a time: the next is gathered while one runs. It is torch's `fully_shard`, without its training.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from omniavatar.parallel.sequence import SequenceGroup


def shard_blocks(
    model: nn.Module, blocks: Iterable[nn.Module], ranks: SequenceGroup, device: torch.device, on_host: bool = False
) -> None:
    """Keep of each of these `blocks` of `model` this process's part on `device`, or in the memory of the host; move
    what else it has to `device` whole.

    For a model that is not trained, called by all `ranks` alike from now on and always in inference mode. No more than
    one block is on the device whole meanwhile, and nothing waits for another process. Weights must not be replaced
    afterwards.
    """
    mesh = DeviceMesh.from_group(ranks.group, device.type)
    where = CPUOffloadPolicy(pin_memory=device.type == "cuda") if on_host else OffloadPolicy()
    rest = set(model.parameters())
    for block in blocks:
        rest -= set(block.parameters())
        fully_shard(block, mesh=mesh, reshard_after_forward=True, offload_policy=where)
    for parameter in rest:
        parameter.data = parameter.data.to(device)
    # Blocks below one root know which of them is next.
    fully_shard(model, mesh=mesh, offload_policy=where, ignored_params=rest)
