import os
from pathlib import Path

import pytest
from PIL import Image

from common.errors import ExistingFileError, InputError
from omniavatar.config import Request
from pipelines.generate import targets
from pipelines.generate.sample_list import Sample
from pipelines.generate.targets import check_targets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("talk.mp4", "voice.wav", "list.csv"):
        (tmp_path / name).write_text("x")
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    os.link(tmp_path / "voice.wav", tmp_path / "hard.mp4")
    return tmp_path


def faults(folder: Path, *names: str, image: bool = True) -> list[str]:
    request = Request(folder / "face.png" if image else None, folder / "voice.wav", "a man")
    samples = [Sample("first", Request(folder / "face.png", folder / "talk.mp4"))]
    samples += [Sample(name, request) for name in names]
    return [sample.error for sample in check_targets(samples, folder, folder / "list.csv")]


def test_only_the_samples_that_would_replace_something_are_refused(folder: Path) -> None:
    (folder / "notes.json").write_text("mine")
    (folder / "clip.mp4").mkdir()
    good, *bad, last = faults(folder, "talk", "hard", "notes", "clip", "face")
    assert not good and not last
    for fault, words in zip(bad, ("the input", "the input", "not written by", "is a folder"), strict=True):
        assert words in fault


def test_a_portrait_that_is_drawn_replaces_no_input(folder: Path) -> None:
    assert "face.png is the input" in faults(folder, "face", image=False)[1]


def test_two_samples_with_one_output_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(folder, "Anna", "anna") == ["", "", ""]
    with pytest.raises(InputError, match="'anna' and 'anna' have one output"):
        faults(folder, "anna", "anna")
    monkeypatch.setattr(targets, "ignores_case", lambda folder: True)
    with pytest.raises(InputError, match="'Anna' and 'anna' have one output"):
        faults(folder, "Anna", "anna")


def test_the_table_of_results_replaces_neither_the_list_nor_another_table(folder: Path) -> None:
    table = folder / targets.RESULTS
    table.write_text("name,state,video,message\n")
    assert faults(folder) == [""]
    with pytest.raises(InputError, match="would replace it"):
        check_targets([], folder, table)
    table.write_text("score,name\n")
    with pytest.raises(ExistingFileError, match="holds no results of a list"):
        faults(folder)
    with pytest.raises(InputError, match="not a folder"):
        check_targets([], folder / "list.csv", folder / "list.csv")
