"""Listing sources: order, ids, captions, and clear words when there is nothing to list."""

from pathlib import Path

import pytest

from curation.sources import SourcesConfig, SourcesError, list_sources


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")


def test_a_folder_is_searched_to_the_bottom_in_one_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.mp4", "a/z.MKV", "a/deep/x.webm", "notes.txt", "face.jpeg", ".b.tmp.mp4")))
    rows = list_sources(SourcesConfig(str(tmp_path), name="mine"))
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
    rows = list_sources(SourcesConfig(str(tmp_path / "list.txt"), kind="list"))
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
