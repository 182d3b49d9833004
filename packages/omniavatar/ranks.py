"""Several processes that make one video: each holds a part of the tokens of every sample (see sequence.py)."""

import os

import torch
import torch.distributed as dist

from omniavatar.sequence import SequenceGroup
from omniavatar.transformer import AvatarTransformer


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where `device` is any GPU: the one of the number torchrun gave it on its machine."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def join_ranks(model: AvatarTransformer, device: torch.device) -> int:
    """Share every sample of `model` among the processes of one torchrun call, and return the number of this one.

    All of them must make the same calls in the same order; each gets the whole result. Raises ValueError when there is
    no such call, and where the model's heads cannot be dealt to that many.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise ValueError("load.share_sequence is set, but this is one process; start it by torchrun, or unset it.")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    ranks = SequenceGroup(dist.new_group())
    model.share_sequence(ranks)
    return ranks.rank
