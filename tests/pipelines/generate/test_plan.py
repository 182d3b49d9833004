from pathlib import Path

import pytest

from omniavatar.config import GenerateConfig, LoadConfig
from omniavatar.planning.network import network_of
from omniavatar.planning.sizes import PUBLISHED, Networks
from pipelines.generate.plan import Forecast, forecast_video, local_device, plan_lines, table_lines
from training.planning.devices import Device, named_device

WIDE = (720, 1280)  # an image, which becomes 400 x 720


def published(name: str) -> Networks:
    return Networks(network_of(PUBLISHED[name], "lora", 128, "multi"))


def planned(name: str, gibibytes: float, host: float = 64e9, **settings: object) -> Forecast:
    card = Device("card", 100e12, gibibytes * 2**30, 32e9, host_link=32e9)
    return forecast_video(GenerateConfig(**settings), published(name), card, host, 60.0, WIDE)


@pytest.mark.parametrize("gibibytes", [8, 12, 16, 24, 48, 80])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_card_has_a_mode_with_64_gb_of_host_memory(name: str, gibibytes: int) -> None:
    found = planned(name, gibibytes)
    assert not found.problem and found.fit.load.quantize == "none"
    assert found.fit.device <= 0.9 * gibibytes * 2**30 and found.seconds > 0


def test_with_little_host_memory_8_bits_fit_or_the_reason_is_said() -> None:
    assert planned("wan2.1-t2v-14b", 24, 32e9).fit.mode == "int8"
    assert planned("wan2.1-t2v-14b", 16, 24e9).fit.mode == "int8_offloaded"
    problem = planned("wan2.1-t2v-14b", 16, 12e9).problem
    assert problem.startswith("does not fit the host: int8_offloaded needs 18") and "more host memory" in problem
    assert "smaller height and width" in planned("wan2.1-t2v-14b", 2).problem
    named = planned("wan2.1-t2v-14b", 24, load=LoadConfig(memory="resident"), chunk_frames=73)
    assert "does not fit: resident needs" in named.problem


def test_time_is_that_of_the_authors_table() -> None:
    """16 s a step of two branches of 29,640 tokens on one A800 (README of the release): 167 s a second of video."""
    config = GenerateConfig(height=480, width=832, chunk_frames=73, blend=0)
    found = forecast_video(config, published("wan2.1-t2v-14b"), named_device("A800-80GB"), 128e9, 60.0)
    assert found.fit.mode == "resident" and 160 < found.seconds / 60 < 215


def test_copying_the_blocks_takes_time_where_computing_is_faster() -> None:
    card = Device("card", 1e16, 24 * 2**30, 32e9, host_link=32e9)
    found = forecast_video(GenerateConfig(), published("wan2.1-t2v-14b"), card, 64e9, 60.0, WIDE)
    assert found.fit.mode == "offloaded"
    assert found.seconds > 18 * 25 * 2 * 28e9 / 32e9  # 18 chunks or more, each pass copies 28 GB


def test_lines() -> None:
    found = planned("wan2.1-t2v-14b", 24, 32e9)
    text = "\n".join(plan_lines(found, GenerateConfig(), published("wan2.1-t2v-14b"), 32e9))
    assert "mode     int8 (set generate.load.memory=int8): text encoder streamed" in text
    assert "60 s of video at 400 x 720, 105 frames a chunk, 25 steps of 2 branches" in text
    assert "load transformer" in text and "s a second of video" in text
    table = table_lines([found, planned("wan2.1-t2v-14b", 2)])
    assert len(table) == 3 and "int8" in table[1] and "does not fit" in table[2]


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_device().name == "this CPU" and local_device().flops > 1e9
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3090, 24576'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert (local_device().name, local_device().memory) == ("RTX 3090", 24 * 2**30)
