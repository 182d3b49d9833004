"""The device that is measured: the one place that knows CUDA, and its sibling on a CPU.

Rows ask for spans of time, memory and seeds here, so that the same row runs on both.
"""

import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from training.planning.devices import peak_memory

PACKAGES = ("diffusers", "transformers", "peft", "accelerate", "deepspeed", "flash-attn", "flash-attn-3", "torchao")
SEED = 20_250_623


class Span:
    """Context whose `seconds` are those between its start and its end, by the wall clock."""

    def __enter__(self) -> "Span":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Length of the span, to be read after it."""
        return self._ended - self._began


class CudaSpan(Span):
    """The same on a CUDA stream: from when the device reaches the start until it has done all that was queued.

    Neither end waits for the device, so nothing is added to what is measured; reading `seconds` waits.
    """

    def __enter__(self) -> "CudaSpan":
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._start.record()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.record()

    @property
    def seconds(self) -> float:
        """Length of the span; waits for its end."""
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) / 1000


class Device:
    """A CPU: every row runs on it, at tiny sizes; what it times says nothing about a GPU."""

    torch_device = torch.device("cpu")
    capability = (0, 0)
    half = torch.float16  # in which the published judge runs; here too, so that a mixture of types is found
    name = "CPU"

    def span(self) -> Span:
        """A span of time on this device."""
        return Span()

    def wait(self) -> None:
        """Return when all that was queued is done."""

    def free(self) -> int:
        """Bytes that can be allocated."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

    def peak(self) -> int:
        """Peak bytes of tensors since `release` (of the whole process, on a CPU)."""
        return peak_memory(self.torch_device)

    def host_buffer(self, count: int) -> torch.Tensor:
        """`count` bytes in host memory from which a GPU copies at full speed."""
        return torch.empty(count, dtype=torch.uint8)

    def release(self) -> None:
        """Between two rows: give back what nothing refers to, and begin to count the peak anew; seeds too."""
        torch.manual_seed(SEED)

    def healthy(self) -> bool:
        """False when the device answers no more: after an illegal access a CUDA context stays broken."""
        return True

    def describe(self) -> dict[str, Any]:
        """Device and software, for the report."""
        found = {"device": self.name, "torch": torch.__version__, "python": platform.python_version()}
        return found | {"packages": dict(_versions()), "date": time.strftime("%Y-%m-%d %H:%M")}

    def times(self, *works: Callable[[], object], rounds: int = 3, warm: int = 1) -> list[list[float]]:
        """Seconds of each work in each round, after `warm` untimed ones; several works take turns within a round."""
        for _ in range(warm):
            for work in works:
                work()
        self.wait()
        spans: list[list[Span]] = [[] for _ in works]
        for _ in range(rounds):
            for own, work in zip(spans, works, strict=True):
                with self.span() as span:
                    work()
                own.append(span)
        return [[span.seconds for span in own] for own in spans]

    def seconds(self, work: Callable[[], object], rounds: int = 3, warm: int = 1) -> float:
        """Median seconds of a work."""
        return median(self.times(work, rounds=rounds, warm=warm)[0])


class CudaDevice(Device):
    """The first CUDA device that is visible."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch_device)
        self.name = torch.cuda.get_device_name(self.torch_device)
        self.capability = torch.cuda.get_device_capability(self.torch_device)

    def span(self) -> Span:
        """A span between two CUDA events on the current stream."""
        return CudaSpan()

    def wait(self) -> None:
        """Return when all streams are done."""
        torch.cuda.synchronize(self.torch_device)

    def free(self) -> int:
        """Bytes free on the device, as the driver says."""
        return torch.cuda.mem_get_info(self.torch_device)[0]

    def host_buffer(self, count: int) -> torch.Tensor:
        """Pinned memory: other pages are copied twice."""
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)

    def release(self) -> None:
        """Give cached blocks back to the driver as well, so that fragments of one row do not make the next one fail."""
        super().release()
        self.wait()
        gc.collect()  # modules with hooks are reference cycles
        gc.freeze()  # what is left are libraries: not to be searched again, least of all within a span
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def healthy(self) -> bool:
        """Whether the context still computes."""
        try:
            return float(torch.ones(2, device=self.torch_device).sum()) == 2.0
        except RuntimeError:  # torch.AcceleratorError in newer versions, a kind of it
            return False

    def describe(self) -> dict[str, Any]:
        """Device, memory, libraries and software."""
        properties = torch.cuda.get_device_properties(self.torch_device)
        return super().describe() | {
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": ".".join(map(str, self.capability)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }


def find_device(kind: str) -> Device:
    """The device to measure: "cuda", "cpu", or "auto" for CUDA where there is one. Raises InputError."""
    found = torch.cuda.is_available()
    if kind == "cuda" and not found:
        raise InputError("This torch sees no CUDA device; `make gpu TINY=1` runs the same rows on a CPU.")
    return CudaDevice() if found and kind != "cpu" else Device()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Context in which float32 is multiplied as such: cuDNN's convolutions otherwise round to TF32, 1e-3 off."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def relative_error(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference| in float64 on the host; NaN where either is not finite."""
    out, reference = out.detach().double().cpu(), reference.detach().double().cpu()
    return float((out - reference).norm() / reference.norm())


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
