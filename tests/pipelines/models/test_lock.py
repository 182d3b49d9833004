import hashlib

import pytest

from common.runs import hash_path
from pipelines.models.lock import (
    LockedEntry,
    LockedFile,
    compare_with_lock,
    locked_files,
    model_hash,
    read_lock,
    write_lock,
)


@pytest.fixture
def folder(tmp_path):
    files = {}
    for name, content in (("a/one.bin", b"1" * 10), ("a/deep/two.bin", b"2" * 20)):
        (tmp_path / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "base" / name).write_bytes(content)
        files[name] = LockedFile(len(content), hashlib.sha256(content).hexdigest(), "https://somewhere")
    write_lock(tmp_path, {"base": LockedEntry("Apache-2.0", "c0ffee", files)})
    return tmp_path


def test_what_is_written_is_read_back(folder):
    assert read_lock(folder)["base"].revision == "c0ffee" and len(read_lock(folder)["base"].files) == 2
    assert read_lock(folder / "base") == {}


@pytest.mark.parametrize(("path", "names"), [("base", 2), ("base/a/deep", 1), ("base/a/one.bin", 1), ("other", 0)])
def test_the_lock_file_above_a_path_speaks_of_what_is_at_or_below_it(folder, path, names):
    assert len(locked_files(folder / path)) == names


def test_no_lock_file_says_nothing(tmp_path):
    assert locked_files(tmp_path / "weights.pt") == {}


def test_sizes_are_compared_always_and_content_when_asked(folder):
    files = locked_files(folder / "base")
    assert compare_with_lock(files, content=True) == []
    (folder / "base/a/one.bin").write_bytes(b"3" * 10)
    assert compare_with_lock(files, content=False) == []
    assert compare_with_lock(files, content=True) == [
        "one.bin has changed since it was fetched (its SHA-256 differs); fetch it again"
    ]
    (folder / "base/a/one.bin").unlink()
    (folder / "base/a/deep/two.bin").write_bytes(b"")
    assert compare_with_lock(files, content=True) == [
        "two.bin has 0 bytes, expected 20 as fetched; fetch it again",
        "one.bin is absent, expected 10 as fetched; fetch it again",
    ]


def test_the_hash_is_that_of_the_content_and_the_lock_file_saves_reading(tmp_path):
    folder = tmp_path / "entry"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"one")
    (folder / "sub" / "b.bin").write_bytes(b"two")
    plain = hash_path(folder)
    assert model_hash(folder) == plain
    hashes = {name: hash_path(folder / name) for name in ("a.bin", "sub/b.bin")}
    write_lock(tmp_path, {"entry": LockedEntry("MIT", files={n: LockedFile(3, h, "") for n, h in hashes.items()})})
    assert model_hash(folder) == plain and model_hash(folder / "a.bin") == hashes["a.bin"]
    write_lock(tmp_path, {"entry": LockedEntry("MIT", files={"a.bin": LockedFile(3, "0" * 64, "")})})
    assert model_hash(folder / "a.bin") == "0" * 64 and model_hash(folder) != plain
    (folder / "a.bin").write_bytes(b"changed")  # of another size: no longer what was fetched
    assert model_hash(folder) == hash_path(folder)
