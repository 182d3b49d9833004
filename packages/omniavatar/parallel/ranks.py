"""Processes that generate one video together: each holds a part of the tokens of every sample (see sequence.py), or
takes some of the branches of guidance (see sampler.py)."""

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
    """`device`, or the GPU of this process's local rank where `device` is "cuda" without an index."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join_ranks(device: torch.device) -> SequenceGroup:
    """A group of all processes of a torchrun call, which share the work of a model.

    All of them must make the same calls in the same order; each gets the whole result. Raises ValueError outside of
    torchrun.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise InputError(
                "load.share_sequence or load.share_branches is set, but this is a single process; start it with "
                "torchrun, or unset it."
            )
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return SequenceGroup(dist.new_group())


@contextmanager
def in_turn(ranks: SequenceGroup) -> Iterator[None]:
    """A context that the processes of a machine run one after the other, in order of their local ranks."""
    turn = int(os.environ.get("LOCAL_RANK", ranks.rank))
    turns = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    # A group of its own: the default timeout of ten minutes is too short for loading.
    waiting = dist.new_group(backend="gloo", timeout=LONGEST_LOADING)
    for _ in range(turn):
        dist.barrier(waiting)
    try:
        yield
    finally:
        for _ in range(turn, turns):
            dist.barrier(waiting)
