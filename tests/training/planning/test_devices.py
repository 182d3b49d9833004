from pathlib import Path

import pytest
import torch

from training.planning.devices import DEVICES, measured_peak, named_device, peak_memory, peak_of, this_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("h200", "H200"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("rtx4090", "RTX 4090"),
    ],
)
def test_devices_are_known_by_their_drivers_name(driver: str, name: str) -> None:
    assert named_device(driver).name == name


def test_every_device_is_found_by_its_own_name() -> None:
    assert [named_device(device.name) for device in DEVICES] == list(DEVICES)


def test_a_device_without_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="'Tesla P40'; expected one of A100-40GB, A100-80GB"):
        named_device("Tesla P40")


def test_a_peak_is_at_least_what_a_product_reaches() -> None:
    peak = measured_peak(CPU, torch.float32)
    assert 1e9 < peak.flops < 1e13
    assert peak.source == "measured, 512 x 512 float32 product"
    assert peak_of(CPU, torch.bfloat16).source.startswith("measured")


def test_this_device_has_memory_and_speed() -> None:
    device = this_device()
    assert device.flops > 1e9 and device.memory > 1e9


def test_peak_memory_is_what_the_system_says() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory(CPU) == pytest.approx(1024 * int(status["VmHWM"].split()[0]), rel=0.05)
