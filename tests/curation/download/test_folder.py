"""Fetched files: checked, named, recognised later, and never mixed up with others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.media.write import write_video
from common.runs import sha256_file
from curation.download.errors import Failure, FailureClass
from curation.download.folder import VideoFolder, check_talk
from curation.sources.remote import remote_row
from tests.curation.conftest import draw_talk, write_talk

WANTED = {"max_height": 720}
SAID = {"url": "https://host.test/v", "format_id": "18"}


def row_of(unit: str, *segments: dict[str, Any]) -> dict[str, Any]:
    """A source row."""
    return remote_row(unit, "https://host.test/v", "urls", list(segments))


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of two seconds that speaks, 64 x 64."""
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.mp4", draw_talk(1, 2.0))


def part_of(folder: VideoFolder, talk: Path, name: str = "v.f18.mp4") -> Path:
    """A fetched file that waits to be taken in."""
    folder.parts.mkdir(parents=True, exist_ok=True)
    (folder.parts / name).write_bytes(talk.read_bytes())
    return folder.parts / name


def test_what_was_taken_in_is_recognised(talk: Path, tmp_path: Path) -> None:
    folder = VideoFolder(tmp_path, WANTED)
    outputs = folder.take_in(part_of(folder, talk), row_of("-v"), SAID)
    assert outputs == {"file": "-v.mp4", "bytes": talk.stat().st_size, "sha256": sha256_file(talk), "fetched": SAID}
    assert folder.existing_outputs(row_of("-v")) == outputs and not list(folder.parts.iterdir())
    assert folder.existing_outputs(row_of("other")) is None


def test_damage_and_another_recipe_are_seen(talk: Path, tmp_path: Path) -> None:
    folder, other = VideoFolder(tmp_path, WANTED), VideoFolder(tmp_path, {"max_height": 1080})
    folder.take_in(part_of(folder, talk), row_of("v"), SAID)
    assert other.existing_outputs(row_of("v")) is None
    # The other recipe brings another container: one file of the unit remains.
    other.take_in(part_of(folder, talk, "v.f1080.webm"), row_of("v"), SAID)
    assert [file.name for file in tmp_path.glob("v.*")].count("v.mp4") == 0
    assert folder.existing_outputs(row_of("v")) is None and other.existing_outputs(row_of("v")) is not None
    (tmp_path / "v.webm").write_bytes(talk.read_bytes()[:-10])
    assert other.existing_outputs(row_of("v")) is None


def test_a_file_put_there_by_hand_is_taken(talk: Path, tmp_path: Path) -> None:
    (tmp_path / "v.mkv").write_bytes(talk.read_bytes())
    outputs = VideoFolder(tmp_path, WANTED).existing_outputs(row_of("v"))
    assert outputs is not None and outputs["file"] == "v.mkv" and outputs["fetched"] is None


def test_an_odd_suffix_becomes_that_of_a_video(talk: Path, tmp_path: Path) -> None:
    folder = VideoFolder(tmp_path, WANTED)
    assert folder.take_in(part_of(folder, talk, "v.f0.unknown_video"), row_of("v"), SAID)["file"] == "v.mp4"


def test_crops_are_brought_to_the_video_that_came(talk: Path, tmp_path: Path) -> None:
    folder = VideoFolder(tmp_path, WANTED)
    segment = {"row_index": 0, "name": "a_0", "start": 0.0, "end": 1.0, "x": None, "y": None}
    row = row_of("v", segment | {"crop": [0, 320, 640, 640], "crop_height": 960})
    assert folder.take_in(part_of(folder, talk), row, SAID)["segments"] == [segment | {"crop": [0, 21, 43, 43]}]


def test_only_a_talk_of_the_announced_length_passes(talk: Path, tmp_path: Path) -> None:
    for length in (None, 2.0, 3.5):
        check_talk(talk, length)
    write_video(tmp_path / "mute.mp4", np.zeros((50, 64, 64, 3), np.uint8), None)
    (tmp_path / "cut.mp4").write_bytes(talk.read_bytes()[:-3000])
    for file, length, reason in (
        (talk, 10.0, "wrong_duration"),
        (tmp_path / "mute.mp4", None, "no_audio"),
        (tmp_path / "cut.mp4", None, "truncated"),
    ):
        with pytest.raises(Failure) as caught:
            check_talk(file, length)
        assert (caught.value.kind, caught.value.reason) == (FailureClass.POST_CHECK, reason)
