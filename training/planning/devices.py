"""What a device can do: its published peak, or what a matrix product reaches here; and how much memory was in use."""

import os
import resource
import sys
import time
from dataclasses import dataclass, replace

import torch

from common.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Dense bfloat16 operations per second, bytes of memory, bytes per second from another device of the machine.

    `words` are parts of the name by which the driver knows it.
    """

    name: str
    flops: float
    memory: float
    link: float
    words: tuple[str, ...] = ()


# Vendors' figures: bfloat16 without sparsity; the link is one direction of NVLink, or of PCIe 4 where there is none.
DEVICES = (
    Device("A100-40GB", 312e12, 40 * GIB, 300e9, ("A100", "40GB")),
    Device("A100-80GB", 312e12, 80 * GIB, 300e9, ("A100", "80GB")),
    Device("A800-80GB", 312e12, 80 * GIB, 200e9, ("A800", "80GB")),
    Device("H100", 989e12, 80 * GIB, 450e9, ("H100", "HBM3")),
    Device("H800", 989e12, 80 * GIB, 200e9, ("H800",)),
    Device("H200", 989e12, 141e9, 450e9, ("H200",)),
    Device("L40S", 362e12, 48e9, 32e9, ("L40S",)),
)


@dataclass(frozen=True)
class Peak:
    """The operations per second that a share of peak is a share of, and where that number comes from."""

    flops: float
    source: str


def named_device(name: str) -> Device:
    """The device called `name` here or by its driver. Raises ValueError naming those that are known."""
    for device in DEVICES:
        if name.lower() == device.name.lower() or all(word in name for word in device.words):
            return device
    known = ", ".join(device.name for device in DEVICES)
    raise InputError(f"There are no figures of the device {name!r}; expected one of {known}.")


def this_device() -> Device:
    """The first device of this machine: its figures when its name is known, what it reaches here otherwise.

    Its link is then 0: not known.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name, found = properties.name, float(properties.total_memory)
    else:
        name, found = "CPU", float(_installed())
    try:
        known = named_device(name)
        return replace(known, memory=found)
    except ValueError:
        reached = measured_peak(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)
        return Device(name, reached.flops, found, link=0.0)


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The published peak of a known GPU in bfloat16; of anything else what a matrix product reaches there now."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        try:
            return Peak(named_device(name).flops, f"published for {name}")
        except ValueError:
            pass  # a GPU of which we know nothing is measured
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best of five products of square matrices; a tenth of a second on a CPU core."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    kind = str(dtype).removeprefix("torch.")
    return Peak(2 * side**3 / best, f"measured, {side} x {side} {kind} product")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: on a GPU of tensors, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _installed() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
