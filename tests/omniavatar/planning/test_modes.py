from pathlib import Path

import pytest

from omniavatar.config import LoadConfig
from omniavatar.planning.memory import Job
from omniavatar.planning.modes import MODES, SMALL_TILE, choose_mode, free_host_memory, with_mode
from omniavatar.planning.network import network_of
from omniavatar.planning.sizes import Networks
from omniavatar.planning.tiles import plan_tiles

BIG = Networks(network_of({}, "lora", 128, "multi"))
JOB = Job(720, 720, 57, 13)


@pytest.mark.parametrize(
    ("device", "host", "mode", "fits"),
    [
        (80e9, 64e9, "resident", True),
        (45e9, 64e9, "text_streamed", True),
        (24e9, 64e9, "offloaded", True),
        (8.7e9, 64e9, "offloaded_tiled", True),
        (24e9, 20e9, "offloaded_tiled", False),  # the host has no room for the blocks
        (0, 90e9, "resident", True),
        (0, 40e9, "text_streamed", True),
        (0, 20e9, "tiled", False),
    ],
)
def test_the_first_mode_that_fits(device: float, host: float, mode: str, fits: bool) -> None:
    found = choose_mode(BIG, LoadConfig(), JOB, device, host, half=True)
    assert (found.mode, found.fits) == (mode, fits)


def test_every_size_has_a_grid_of_small_tiles() -> None:
    for side in range(2, 240):
        assert plan_tiles(side, 49, SMALL_TILE) is not None or side * 49 <= SMALL_TILE
    with pytest.raises(ValueError, match="49x49"):
        plan_tiles(49, 49, SMALL_TILE - 20)


def test_a_mode_adds_to_what_is_set() -> None:
    load = with_mode(LoadConfig(quantize="int8", largest_tile=1000), "offloaded_tiled")
    assert (load.quantize, load.largest_tile, load.tiled_vae, load.offload) == ("int8", 1000, True, "blocks")
    assert with_mode(load, "resident") == load
    assert all(name in LoadConfig.__annotations__ for settings in MODES.values() for name in settings)


def test_free_memory_is_within_the_machines() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free_host_memory() <= total
