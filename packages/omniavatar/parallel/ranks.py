"""Several processes that make one video: each holds a part of the tokens of every sample (see sequence.py), or takes
some of the passes of guidance (see sampler.py)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from common.errors import InputError
from omniavatar.parallel.sequence import SequenceGroup

LONGEST_LOADING = timedelta(hours=2)


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where `device` is any GPU: the one of the number torchrun gave it on its machine."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join_ranks(device: torch.device) -> SequenceGroup:
    """The processes of one torchrun call, to share a model's work among.

    All of them must make the same calls in the same order; each gets the whole result. Raises ValueError when there is
    no such call.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise InputError(
                "load.share_sequence or load.share_branches is set, but this is one process; start it by torchrun, or "
                "unset it."
            )
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return SequenceGroup(dist.new_group())


@contextmanager
def in_turn(ranks: SequenceGroup) -> Iterator[None]:
    """What stands in this context is done by one process of each machine after the other."""
    turn = int(os.environ.get("LOCAL_RANK", ranks.rank))
    turns = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    # A group of its own: the one of the GPUs gives up after ten minutes.
    waiting = dist.new_group(backend="gloo", timeout=LONGEST_LOADING)
    for _ in range(turn):
        dist.barrier(waiting)
    try:
        yield
    finally:
        for _ in range(turn, turns):
            dist.barrier(waiting)
