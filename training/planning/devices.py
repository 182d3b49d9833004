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
    """Dense bfloat16 operations per second, bytes of memory, bytes per second from another device of the machine, and
    from the host's memory (0 where there is none of its own).

    `words` are parts of the name that the driver reports.
    """

    name: str
    flops: float
    memory: float
    link: float
    words: tuple[str, ...] = ()
    host_link: float = 0.0


PCIE_3, PCIE_4, PCIE_5 = 16e9, 32e9, 64e9  # bytes per second of 16 lanes in one direction
PCIE_4_X8 = PCIE_4 / 2


def _card(name: str, tera: float, gigabytes: float, pcie: float = PCIE_4, words: str = "") -> Device:
    """A card without NVLink; its memory is counted in binary gigabytes, as its driver does."""
    return Device(name, tera * 1e12, gigabytes * GIB, pcie, tuple((words or name).split()), pcie)


# Vendors' figures: bfloat16 without sparsity, accumulated in float32; the link is one direction of NVLink, else PCIe.
# Data centre: NVIDIA's data sheets. GeForce: the architecture papers of GA102, AD102 and GB202, where tensor cores
# reach twice the float32 figure. Laptops: twice the float32 of the highest power; many makers allow less. T4: no
# bfloat16 in hardware, so its float32 figure.
DEVICES = (
    Device("A100-40GB", 312e12, 40 * GIB, 300e9, ("A100", "40GB"), PCIE_4),
    Device("A100-80GB", 312e12, 80 * GIB, 300e9, ("A100", "80GB"), PCIE_4),
    Device("A800-80GB", 312e12, 80 * GIB, 200e9, ("A800", "80GB"), PCIE_4),
    Device("H100", 989e12, 80 * GIB, 450e9, ("H100", "HBM3"), PCIE_5),
    Device("H100 PCIe", 756e12, 80 * GIB, PCIE_5, ("H100", "PCIe"), PCIE_5),
    Device("H800", 989e12, 80 * GIB, 200e9, ("H800",), PCIE_5),
    Device("H200", 989e12, 141e9, 450e9, ("H200",), PCIE_5),
    Device("L40S", 362e12, 48e9, 32e9, ("L40S",), PCIE_4),
    _card("L40", 181, 48),
    _card("L4", 121, 24),
    _card("A40", 150, 48),
    _card("A30", 165, 24),
    _card("A10G", 70, 24),
    _card("A10", 125, 24),
    _card("T4", 8.1, 16, PCIE_3),
    _card("RTX PRO 6000 Blackwell", 504, 96, PCIE_5, "RTX PRO 6000"),
    _card("RTX 6000 Ada", 364, 48),
    _card("RTX 5000 Ada", 261, 32),
    _card("RTX A6000", 155, 48),
    _card("RTX A5000", 111, 24),
    _card("RTX A4000", 76.7, 16),
    _card("RTX 5090 Laptop", 63.6, 24, PCIE_4),
    _card("RTX 5090", 210, 32, PCIE_5),
    _card("RTX 5080", 113, 16, PCIE_5),
    _card("RTX 5070 Ti", 87.9, 16, PCIE_5),
    _card("RTX 5070", 61.7, 12, PCIE_5),
    _card("RTX 5060 Ti", 47.4, 16, PCIE_5 / 2),
    _card("RTX 4090 Laptop", 66, 16, PCIE_4),
    _card("RTX 4090", 165, 24),
    _card("RTX 4080 Laptop", 49, 12, PCIE_4),
    _card("RTX 4080 SUPER", 104, 16),
    _card("RTX 4080", 97.5, 16),
    _card("RTX 4070 Laptop", 31, 8, PCIE_4_X8),
    _card("RTX 4070 Ti SUPER", 88.2, 16),
    _card("RTX 4070 Ti", 80.2, 12),
    _card("RTX 4070 SUPER", 71, 12),
    _card("RTX 4070", 58.3, 12),
    _card("RTX 4060 Laptop", 23, 8, PCIE_4_X8),
    _card("RTX 4060 Ti", 44.1, 8, PCIE_4_X8),
    _card("RTX 4060", 30.2, 8, PCIE_4_X8),
    _card("RTX 3090 Ti", 80, 24),
    _card("RTX 3090", 71, 24),
    _card("RTX 3080 Ti", 68, 12),
    _card("RTX 3080", 59.5, 10),
    _card("RTX 3070", 40.6, 8),
    _card("RTX 3060", 25.5, 12),
)


@dataclass(frozen=True)
class Peak:
    """Peak operations per second, the reference of MFU and HFU, and the source of that number."""

    flops: float
    source: str


def named_device(name: str) -> Device:
    """The device of this name, here or in its driver. Raises InputError listing the known ones."""
    asked = _letters(name)
    for device in DEVICES:
        if asked == _letters(device.name):
            return device
    for device in DEVICES:
        if all(word in name.replace("-", " ").split() for word in device.words):
            return device
    names = ", ".join(device.name for device in DEVICES)
    raise InputError(f"There are no figures of the device {name!r}; expected one of {names}.")


def _letters(name: str) -> str:
    short = name.lower().replace("nvidia", "").replace("geforce", "")
    return "".join(letter for letter in short if letter.isalnum())


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
