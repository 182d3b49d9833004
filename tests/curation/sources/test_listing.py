"""Listing sources: order, ids, captions, and clear words when there is nothing to list."""

import os
from pathlib import Path

import pytest

from curation.config import SourcesConfig
from curation.sources.listing import list_sources
from curation.sources.remote import SourcesError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")


def test_a_folder_is_searched_to_the_bottom_in_one_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.mp4", "a/z.MKV", "a/deep/x.webm", "notes.txt", "face.jpeg", ".b.tmp.mp4")))
    rows = list(list_sources(SourcesConfig(str(tmp_path), name="mine")))
    assert [row["unit"] for row in rows] == ["a/deep/x.webm", "a/z.MKV", "b.mp4"]
    assert rows[2]["path"] == str(tmp_path / "b.mp4") and rows[2]["bytes"] == 5
    assert {row["source"] for row in rows} == {"mine"} and rows[0]["row_index"] is None


def test_the_caption_beside_a_video_is_taken(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4", tmp_path / "d.mp4")
    (tmp_path / "a.json").write_text('{"caption": "A woman nods.", "truth": {}}')
    (tmp_path / "b.json").write_text("no json at all")
    (tmp_path / "c.json").write_text('["a list"]')
    assert [row["caption"] for row in list_sources(SourcesConfig(str(tmp_path)))] == ["A woman nods.", None, None, None]


def test_a_list_keeps_its_order_and_numbers(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "2.mp4", tmp_path / "v" / "1.mp4")
    (tmp_path / "list.txt").write_text("# mine\nv/2.mp4\n\nv/1.mp4\nv/2.mp4\n")
    rows = list(list_sources(SourcesConfig(str(tmp_path / "list.txt"), kind="list")))
    assert [(row["unit"], row["row_index"]) for row in rows] == [("v/2.mp4", 0), ("v/1.mp4", 1)]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="The source folder .*nowhere does not exist"):
        list_sources(SourcesConfig(str(tmp_path / "nowhere")))
    with pytest.raises(SourcesError, match="holds no video"):
        list_sources(SourcesConfig(str(tmp_path)))
    with pytest.raises(SourcesError, match="sources.path is empty"):
        list_sources(SourcesConfig())
    with pytest.raises(FileNotFoundError, match="The source list .*list.txt does not exist"):
        list_sources(SourcesConfig(str(tmp_path / "list.txt"), kind="list"))
    (tmp_path / "list.txt").write_text("gone.mp4\nalso.mp4\n")
    with pytest.raises(FileNotFoundError, match="names .*gone.mp4 and 1 more"):
        list_sources(SourcesConfig(str(tmp_path / "list.txt"), kind="list"))


def test_addresses_get_ids_that_are_safe_and_their_own(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text(
        "\ufeff# mine\nhttps://youtu.be/-bcdefghijk?t=9\nhttps://host.test/a.mp4 first\n"
        "https://www.youtube.com/watch?v=-bcdefghijk\nhttps://host.test/b.mp4\n",
        encoding="utf-8",
    )
    rows = list(list_sources(SourcesConfig(str(tmp_path / "urls.txt"), kind="urls")))
    assert [row["unit"] for row in rows[:2]] == ["-bcdefghijk", "first"] and len(rows) == 3
    assert rows[0]["url"] == "https://www.youtube.com/watch?v=-bcdefghijk" and len(rows[2]["unit"]) == 16
    assert {(row["source"], row["path"], len(row["segments"])) for row in rows} == {("urls", None, 0)}


@pytest.mark.parametrize(
    "text, words",
    [
        ("movie.mp4\n", "names 'movie.mp4'; expected an address"),
        ("https://host.test/a.mp4 ../a\n", "gives the id '../a'"),
        ("https://host.test/a.mp4 same\nhttps://host.test/b.mp4 same\n", "gives the id 'same' to"),
        ("# nothing\n", "is empty"),
    ],
)
def test_addresses_that_cannot_be_used_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "urls.txt").write_text(text)
    with pytest.raises(SourcesError, match=words):
        list_sources(SourcesConfig(str(tmp_path / "urls.txt"), kind="urls"))


def test_the_lists_of_data_sets_are_known_by_kind(tmp_path: Path) -> None:
    (tmp_path / "avspeech_test.csv").write_text("abcdefghijk,1,5,0.5,0.5\n")
    assert (
        next(list_sources(SourcesConfig(str(tmp_path / "avspeech_test.csv"), "avspeech")))["source"] == "avspeech_test"
    )
    with pytest.raises(FileNotFoundError, match="RD_video_url.txt does not exist"):
        list_sources(SourcesConfig(str(tmp_path), "hdtf"))


def names(folder: Path) -> list[str]:
    return [row["unit"] for row in list_sources(SourcesConfig(str(folder)))]


def test_links_are_followed_once_and_a_file_is_listed_once(tmp_path: Path) -> None:
    sources, other = tmp_path / "sources [1]", tmp_path / "other"
    touch(sources / "z.mp4", sources / "real" / "y.mp4", other / "o.mp4", tmp_path / "beside.mp4")
    (sources / "a_link").symlink_to(sources / "real", target_is_directory=True)
    (sources / "a.mp4").symlink_to(sources / "z.mp4")
    (sources / "out").symlink_to(other, target_is_directory=True)
    (other / "again").symlink_to(other, target_is_directory=True)
    (sources / "up").symlink_to(tmp_path, target_is_directory=True)
    (sources / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (sources / "loop.mp4").symlink_to(sources / "loop.mp4")
    assert names(sources) == ["out/o.mp4", "real/y.mp4", "z.mp4"]


def test_what_commands_made_and_hidden_files_are_no_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "v.mp4", tmp_path / "._v.mp4", tmp_path / ".hidden" / "v.mp4", tmp_path / "avatar.mp4")
    touch(tmp_path / "runs" / "one" / "clips" / "v.mp4", tmp_path / "runs" / "one" / "ledger" / "format.json")
    (tmp_path / "avatar.json").write_text('{"settings": {}, "versions": {}, "fps": 25}')
    assert names(tmp_path) == ["v.mp4"] and "runs/one holds what one of our commands made" in caplog.text
    touch(tmp_path / "ledger" / "format.json", tmp_path / "clips" / "c.mp4", tmp_path / "mine" / "m.mp4")
    assert names(tmp_path) == ["mine/m.mp4", "v.mp4"]  # the run folder is the source folder


def test_a_source_that_cannot_be_used_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "v.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with open(os.fsencode(tmp_path) + b"/bad\xff.mp4", "wb"):
        assert names(tmp_path) == ["v.mp4"]
    assert "not UTF-8" in caplog.text and "\\udcff" in caplog.text and "pipe.mp4 is no file" in caplog.text
    (tmp_path / "l.txt").write_text("gone.mp4\nv.mp4\n")
    gone, there = list_sources(SourcesConfig(str(tmp_path / "l.txt"), kind="list"))
    assert gone["refused"]["reason"] == "missing_file" and (there["unit"], there["row_index"]) == ("v.mp4", 1)
    (tmp_path / "u.txt").write_text("movie.mp4\nhttps://host.test/a.mp4 a\n")
    good, bad = list_sources(SourcesConfig(str(tmp_path / "u.txt"), kind="urls"))
    assert good["unit"] == "a" and "movie.mp4" in bad["refused"]["message"]


@pytest.mark.parametrize(
    "sidecar",
    [
        '{"text": "hi", "segments": [{"id": 0, "start": 0.0, "end": 3.0, "text": "hi"}], "language": "en"}',
        '{"caption": ["a man", "a person"]}',
        '{"caption": {"en": "a man"}, "segments": "none"}',
        '{"segments": [{"row_index": 0, "start": 3, "end": 1, "x": 0.5, "y": 0.5}]}',
        '{"segments": [{"row_index": true, "start": 0, "end": 1e999, "x": "l", "y": null}], "caption": 3}',
    ],
)
def test_sidecars_of_other_programs_are_told(tmp_path: Path, sidecar: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "v.mp4")
    (tmp_path / "v.json").write_text(sidecar)
    (row,) = list_sources(SourcesConfig(str(tmp_path)))
    assert (row["caption"], row["segments"]) == (None, []) and "v.json" in caplog.text
