"""Forecast of a rehearsal: host memory of every stage, disk, and how deep a model this machine can rehearse."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from pipelines.recipe import Recipe
from pipelines.rehearse.shapes import FEWEST_BLOCKS, Sizes, files_of
from pipelines.rehearse.stages import Clip, Stage
from training.planning.flops import Network
from training.planning.memory import FLOAT, HALF, memory, parameters

SHARE = 0.9  # of the memory that is available now
PROCESS = 400_000_000
FEWEST_TEXT_BLOCKS = 2


@dataclass(frozen=True)
class Machine:
    """Bytes of host memory that are available, and free on the disk."""

    memory: int
    disk: int


def available_memory() -> int:
    """Bytes that programs can have without swapping, as the kernel estimates it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if "MemAvailable" in line)


def network_of_sizes(sizes: Sizes, rank: int = 128) -> Network:
    """The transformer with its adapter, for counts of parameters and operations."""
    return Network(
        sizes.width, sizes.ffn, sizes.layers, sizes.heads, sizes.text_width, rank=rank, audio_dim=sizes.audio_dim
    )


def parameters_of(role: str, sizes: Sizes) -> int:
    """Number of values in the files of a role."""
    return sum(math.prod(shape) for file in files_of(role, sizes) for shape, _ in file.tensors.values())
