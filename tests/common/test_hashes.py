import json
import os
from pathlib import Path

import pytest

from common.hashes import remembered_hash
from common.runs import hash_path


def test_a_hash_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    folder, memory = tmp_path / "base", tmp_path / "cache" / "hashes.json"
    (folder / "part").mkdir(parents=True)
    for name in ("config.json", "part/one", "part/two"):
        (folder / name).write_text(name)
    first = remembered_hash(folder, memory)
    assert first == hash_path(folder)
    # What is remembered is what is given: the files are not read again.
    known = json.loads(memory.read_text())
    known[str(folder.resolve())]["hash"] = "remembered"
    memory.write_text(json.dumps(known))
    assert remembered_hash(folder, memory) == "remembered"
    assert remembered_hash(folder / "part/one", memory) == hash_path(folder / "part/one")
    assert remembered_hash(folder, memory) == "remembered"
    (folder / "part/two").write_text("PART/TWO")  # of the same size
    assert remembered_hash(folder, memory) == hash_path(folder) != first


@pytest.mark.parametrize("change", ["new", "gone", "renamed", "older"])
def test_every_kind_of_change_is_seen(tmp_path: Path, change: str) -> None:
    folder, memory = tmp_path / "base", tmp_path / "hashes.json"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    remembered_hash(folder, memory)
    memory.write_text(memory.read_text().replace(hash_path(folder), "stale"))
    match change:
        case "new":
            (folder / "c").write_text("c")
        case "gone":
            (folder / "b").unlink()
        case "renamed":
            (folder / "b").rename(folder / "c")
        case "older":
            os.utime(folder / "a", ns=(0, 0))
    assert remembered_hash(folder, memory) == hash_path(folder)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remembered_hash(tmp_path / "nothing", tmp_path / "hashes.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"PATH": 3}', b'{"PATH": {"a": 1}}'])
def test_a_damaged_memory_costs_time_only(tmp_path: Path, content: bytes) -> None:
    file, memory = tmp_path / "weights", tmp_path / "hashes.json"
    file.write_text("w")
    memory.write_bytes(content.replace(b"PATH", str(file).encode()))
    assert remembered_hash(file, memory) == hash_path(file)
    assert json.loads(memory.read_text())[str(file)]["hash"] == hash_path(file)
