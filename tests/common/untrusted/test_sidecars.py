"""JSON files of strangers beside videos: a warning that names the file, never an error."""

import logging
from pathlib import Path

import pytest

from common.untrusted import sidecars
from common.untrusted.sidecars import read_sidecar, text_field


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b'["a"]', b"3", b'{"caption": "\xff"}', b'{"a": "\\ud800"}', b'{"a":' + b"[" * 100_000],
)
def test_what_is_no_object_is_told_and_ignored(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "v.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_sidecar(tmp_path / "v.json") == {}
    assert str(tmp_path / "v.json") in caplog.text


def test_folders_dangling_links_and_giants_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "giant.json").write_text('{"a": 1}')
    monkeypatch.setattr(sidecars, "LARGEST_BYTES", 4)
    for name in ("folder", "link", "loop", "giant"):
        assert read_sidecar(tmp_path / f"{name}.json") == {} and f"{name}.json" in caplog.text
    before = caplog.text
    assert read_sidecar(tmp_path / "none.json") == {} and caplog.text == before


@pytest.mark.parametrize("value", [["a man"], {"en": "a man"}, 7, True, "x" * 20_000])
def test_a_caption_is_a_text(tmp_path: Path, value: object, caplog: pytest.LogCaptureFixture) -> None:
    assert text_field({"caption": value}, "caption", tmp_path / "v.json") is None
    assert "v.json: caption is" in caplog.text
    assert text_field({"caption": " a man "}, "caption", tmp_path / "v.json") == "a man"
    assert text_field({"caption": None}, "caption", tmp_path) is None
