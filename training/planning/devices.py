"""Devices: published peaks and memory of known GPUs, a measured peak of others, and peak memory in use."""

import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    import torch  # takes seconds that a plan for a named device does without

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Dense bfloat16 operations per second, bytes of memory, bytes per second from another device of the machine.

    `words` are parts of the name that the driver reports.
    """

    name: str
    flops: float
    memory: float
    link: float
    words: tuple[str, ...] = ()


# Vendors' figures: bfloat16 without sparsity; the link is one direction of NVLink, else of PCIe 4.
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
    """Peak operations per second, the reference of MFU and HFU, and the source of that number."""

    flops: float
    source: str


def named_device(name: str) -> Device:
    """The device of this name, here or in its driver. Raises InputError listing the known ones."""
    for device in DEVICES:
        if name.lower() == device.name.lower() or all(word in name for word in device.words):
            return device
    names = ", ".join(device.name for device in DEVICES)
    raise InputError(f"There are no figures of the device {name!r}; expected one of {names}.")


def this_device() -> Device:
    """The first device of this machine: published figures when its name is known, a measured peak otherwise.

    A measured device has link 0: unknown.
    """
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name, found = properties.name, float(properties.total_memory)
    else:
        name, found = "CPU", float(_installed())
    try:
        return replace(named_device(name), memory=found)
    except ValueError:
        reached = measured_peak(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)
        return Device(name, reached.flops, found, link=0.0)


def peak_of(device: "torch.device", dtype: "torch.dtype") -> Peak:
    """The published peak of a known GPU in bfloat16; of anything else the speed of a matrix product, measured now."""
    import torch

    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        try:
            return Peak(named_device(name).flops, f"published for {name}")
        except ValueError:
            pass  # an unknown GPU is measured
    return measured_peak(device, dtype)


def measured_peak(device: "torch.device", dtype: "torch.dtype") -> Peak:
    """The best of five products of square matrices; a tenth of a second on a CPU core."""
    import torch

    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    kind = str(dtype).removeprefix("torch.")
    return Peak(2 * side**3 / best, f"measured, {side} x {side} {kind} product")


def peak_memory(device: "torch.device") -> int:
    """Peak bytes in use so far: of tensors on a GPU, of the whole process on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _wait(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _installed() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
