"""Memory modes of generation, from most memory to least, and the choice of the first that fits."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omniavatar.config import LoadConfig
from omniavatar.planning.memory import PROCESS, Job, Stage, forecast
from omniavatar.planning.network import Networks

SMALL_TILE = 1700  # latents; every size has a grid of such tiles: the worst is 49 x 49, in tiles of 41 x 41
_STREAMED = {"text_encoder": "streamed"}
_TILED = _STREAMED | {"tiled_vae": True}
_OFFLOADED = _STREAMED | {"offload": "blocks"}
MODES: Mapping[str, Mapping[str, Any]] = {
    "resident": {},
    "text_streamed": _STREAMED,
    "tiled": _TILED,
    "offloaded": _OFFLOADED,
    "offloaded_tiled": _OFFLOADED | {"tiled_vae": True, "largest_tile": SMALL_TILE},
    "int8": _TILED | {"quantize": "int8"},
    "int8_offloaded": _OFFLOADED | {"tiled_vae": True, "largest_tile": SMALL_TILE, "quantize": "int8"},
}
"""Settings of LoadConfig by mode. Pixels differ only with tiles, where a picture needs more than one, and with int8."""

CHOSEN = ("resident", "text_streamed", "tiled", "offloaded", "offloaded_tiled")  # by "auto": weights stay exact
ON_CPU = ("resident", "text_streamed", "tiled", "int8")  # without a GPU an offload saves nothing
USABLE = 0.9  # of free memory; the rest is for fragmentation and the work space of kernels


@dataclass(frozen=True)
class Fit:
    """A mode with its settings, the stages it goes through, and whether device and host have room for them."""

    mode: str
    load: LoadConfig
    stages: tuple[Stage, ...]
    on_device: bool
    on_host: bool

    @property
    def fits(self) -> bool:
        """Whether it fits both."""
        return self.on_device and self.on_host

    @property
    def device(self) -> int:
        """Peak bytes on the GPU."""
        return max(stage.device for stage in self.stages)

    @property
    def host(self) -> int:
        """Peak bytes on the host."""
        return max(stage.host for stage in self.stages)

    def needs(self) -> str:
        """Its peaks in words, with the stages that have them."""
        largest = max(self.stages, key=lambda stage: stage.device or stage.host)
        gpu = f"{self.device / 1e9:.1f} GB on the GPU ({largest.name}) and " if self.device else ""
        at = "" if self.device else f" ({largest.name})"
        return f"{gpu}{self.host / 1e9:.1f} GB of host memory{at}"


def with_mode(load: LoadConfig, mode: str) -> LoadConfig:
    """The settings of `load` with those of a mode; what is set already to save memory stays."""
    settings = dict(MODES[mode])
    if "largest_tile" in settings:
        settings["largest_tile"] = min(settings["largest_tile"], load.largest_tile)
    return replace(load, **settings)


def fits_of(
    networks: Networks, load: LoadConfig, job: Job, device: float, host: float, half: bool, modes: tuple[str, ...]
) -> Iterator[Fit]:
    """Each of the `modes` with free bytes of the device (0: there is no GPU) and of the host."""
    for mode in modes:
        chosen = with_mode(load, mode)
        stages = forecast(networks, chosen, job, gpu=device > 0, half=half)
        on_device = not device or max(stage.device for stage in stages) <= USABLE * device
        # The libraries are loaded already, so what is free does not have to hold them.
        on_host = max(stage.host for stage in stages) - PROCESS <= USABLE * host
        yield Fit(mode, chosen, stages, on_device, on_host)


def choose_mode(networks: Networks, load: LoadConfig, job: Job, device: float, host: float, half: bool) -> Fit:
    """The first mode that fits what is free, of those with exact weights; the last of them where none does."""
    modes = CHOSEN if device else tuple(mode for mode in CHOSEN if mode in ON_CPU)
    tried = list(fits_of(networks, load, job, device, host, half, modes))
    return next((fit for fit in tried if fit.fits), tried[-1])


def free_host_memory() -> int:
    """Bytes that a process can still take: of the machine, or of its control group where that has less."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        named = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(named["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(most) - int(used.read_text()) + int(pages.get("inactive_file", 0)))
    return max(free, 0)
