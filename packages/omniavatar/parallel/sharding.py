"""Sharded weights for inference: each process keeps its part of every block, and blocks are gathered as they run.

Two blocks are whole at a time: the next is gathered while one runs. Uses torch's `fully_shard` (FSDP2).
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
    """Keep this process's part of each of these `blocks` of `model` on `device`, or in host memory; move the other
    parameters to `device` whole.

    For inference: all `ranks` have to call the model alike, in inference mode. Sharding itself holds at most one whole
    block on the device and does not wait for other processes. Weights must not be replaced afterwards.
    """
    mesh = DeviceMesh.from_group(ranks.group, device.type)
    where = CPUOffloadPolicy(pin_memory=device.type == "cuda") if on_host else OffloadPolicy()
    rest = set(model.parameters())
    for block in blocks:
        rest -= set(block.parameters())
        fully_shard(block, mesh=mesh, reshard_after_forward=True, offload_policy=where)
    for parameter in rest:
        parameter.data = parameter.data.to(device)
    # Blocks under one root prefetch the next one.
    fully_shard(model, mesh=mesh, offload_policy=where, ignored_params=rest)
