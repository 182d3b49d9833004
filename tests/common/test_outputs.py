import os
from pathlib import Path

import pytest

from common.errors import InputError
from common.outputs import check_output_file, check_output_folder, ignores_case, run_files, same_file


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp4"
    path.write_text("speech")
    os.link(path, tmp_path / "hard.mp4")
    (tmp_path / "soft.mp4").symlink_to(path)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    return path


@pytest.mark.parametrize("name", ["talk.mp4", "hard.mp4", "soft.mp4", "folder.mp4/../talk.mp4"])
def test_an_input_is_recognised_under_every_name(talk: Path, name: str) -> None:
    with pytest.raises(InputError, match="would replace it"):
        check_output_file(talk.parent / name, (".mp4",), [None, talk])
    with pytest.raises(InputError, match="would replace it"):
        check_output_file(talk, (".mp4",), [talk.parent / name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.mov", "ends in .mov; expected a file name that ends in .mp4"),
        ("a", "has no suffix"),
        (".mp4", "has no suffix"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "a device or a pipe"),
        ("talk.mp4/a.mp4", "talk.mp4 is not a folder"),
        ("x" * 252 + ".mp4", "File name too long"),
        ("folder.mp4/" + "x" * 300 + "/a.mp4", "File name too long"),
        ("/proc/none/a.mp4", "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(talk: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_output_file(talk.parent / name, (".mp4",))


def test_checking_leaves_nothing_behind(talk: Path) -> None:
    before = sorted(talk.parent.rglob("*"))
    check_output_file(talk.parent / "new" / "A.MP4", (".mp4",), [talk, talk.parent / "absent.wav"])
    check_output_file(talk.parent / "hard.mp4")
    check_output_folder(talk.parent / "new")
    assert sorted(talk.parent.rglob("*")) == before and not ignores_case(talk.parent / "new")
    assert not same_file(talk, talk.parent / "absent.wav")


def test_a_folder_below_a_file_is_refused(talk: Path) -> None:
    for path in (talk, talk / "below"):
        with pytest.raises(InputError, match="not a folder"):
            check_output_folder(path)


def test_the_tables_of_a_run_are_inputs_of_what_reads_it(tmp_path: Path) -> None:
    for name in ("clips.parquet", "recipe.yaml", "test.tsv"):
        (tmp_path / name).write_text("x")
    assert {path.name for path in run_files(tmp_path)} == {"clips.parquet", "recipe.yaml"}
    assert run_files(tmp_path / "absent") == []
