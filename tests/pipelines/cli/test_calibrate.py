"""The command as a user types it, on the small world."""

import re

import pytest
from PIL import Image

from miniature.world.clips import draw_clip
from omniavatar.video.video_file import write_avatar_video
from pipelines.recipe import read_recipe
from tests.pipelines.command_line import run_here


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is printed for one face of a third of a second, seven steps."""
    folder = tmp_path_factory.mktemp("calibrate")
    drawn = draw_clip(1_000_000, seconds=1)
    Image.fromarray(drawn.frames[0]).save(folder / "face.png")
    write_avatar_video(folder / "voice.mp4", drawn.frames[:8], drawn.audio[: 8 * 640])
    (folder / "list.txt").write_text(f"{drawn.caption}@@face.png@@voice.mp4")
    settings = [
        part for setting in ("steps=7", "chunk_frames=13", "overlap=1") for part in ("--set", f"generate.{setting}")
    ]
    done = run_here("calibrate", "--list", folder / "list.txt", "--thresholds", "0,0.2,99", *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_thresholds_compute_less_and_are_less_like(printed: list[str]) -> None:
    rows = [[float(number) for number in re.findall(r"[\d.]+", line)] for line in printed[2:-1]]
    (_, all_steps, _, same, _), (_, some, _, like, lowest), (_, least, _, unlike, _) = rows
    assert all_steps == 7 and same == 100 and least == 2 and 2 < some < 7
    assert unlike < like < same and lowest <= like


def test_what_is_printed_is_a_setting_and_fits_the_model(printed: list[str]) -> None:
    change, error = map(float, re.findall(r"\d+\.\d+", printed[0]))
    assert 0.05 < change < 0.5 and error < 0.2 * change
    setting = re.match(r'--set "(.*)" --set', printed[-1])
    assert setting and len(read_recipe("demo", (setting[1],)).generate.cache_polynomial) == 5


def test_thresholds_must_be_numbers() -> None:
    done = run_here("calibrate", "--thresholds", "0.1;0.2")
    assert done.returncode == 1 and "0.1;0.2" in done.stderr
