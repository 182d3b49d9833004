import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.runs import (
    DiskFullError,
    RunFolder,
    atomic_write,
    disk_guard,
    fingerprint,
    fingerprint_rows,
    hash_path,
    plain,
    read_json,
    save_provenance,
    sha256_file,
    write_json,
)


def test_atomic_write_replaces_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "clip.mp4"
    with atomic_write(target) as temporary:
        assert temporary.suffix == ".mp4" and temporary.parent == target.parent
        temporary.write_text("old")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyError("boom")
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_atomic_write_killed_in_the_middle(tmp_path: Path) -> None:
    """What a kill leaves behind is overwritten by the next write, never seen as the file."""
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    script = f"""
import os
from common.runs import atomic_write
with atomic_write({str(target)!r}) as temporary:
    temporary.write_text('{{"a": 2')
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    assert read_json(target) == {"a": 1}
    write_json(target, {"a": 3})
    assert read_json(target) == {"a": 3} and os.listdir(tmp_path) == ["a.json"]


def test_full_disk_is_one_clear_error_whoever_hits_it(tmp_path: Path) -> None:
    target = tmp_path / "table.parquet"
    target.write_text("old")
    table = pa.table({"a": np.arange(100_000)})
    says = pytest.raises(DiskFullError, match="table.parquet could not be written whole. Free space")
    with says, atomic_write(target), open("/dev/full", "wb") as full:
        pq.write_table(table, full)
    with pytest.raises(DiskFullError), disk_guard(target), open("/dev/full", "w") as text:
        text.write("x")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_other_errors_pass_the_disk_guard() -> None:
    with pytest.raises(PermissionError), disk_guard("x"):
        raise PermissionError("no")


@dataclass(frozen=True)
class Point:
    x: float
    where: Path
    tags: tuple[str, ...] = ()


def test_plain_reduces_to_json() -> None:
    value = {"p": Point(1.5, Path("a/b"), ("t",)), 3: np.float32(0.5), "n": float("nan"), "v": np.arange(2)}
    expected = {"p": {"x": 1.5, "where": "a/b", "tags": ["t"]}, "3": 0.5, "n": None, "v": [0, 1]}
    assert plain(value) == expected and json.loads(json.dumps(plain(value))) == expected
    with pytest.raises(TypeError, match="has no JSON form"):
        plain({"f": object()})


def test_fingerprint_is_canonical_and_stable() -> None:
    # printf '{"a":[1,2],"b":1}' | sha256sum
    assert fingerprint({"b": 1, "a": (1, 2)}) == fingerprint({"a": [1, 2], "b": 1}) == "94a786c3662bc7be"
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    rows = [{"b": 1, "a": (1, 2)}, "é", None]
    for count in range(4):
        assert fingerprint_rows(iter(rows[:count])) == fingerprint(rows[:count])


def test_hash_path_sees_names_and_bytes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "w.bin").write_bytes(b"123")
    first = hash_path(model)
    assert hash_path(model) == first and len(first) == 64
    (model / "sub" / "w.bin").rename(model / "w.bin")
    moved = hash_path(model)
    (model / "w.bin").write_bytes(b"124")
    assert len({first, moved, hash_path(model)}) == 3
    assert hash_path(model / "w.bin") == sha256_file(model / "w.bin")
    with pytest.raises(FileNotFoundError):
        hash_path(tmp_path / "absent")


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_read_json_names_the_broken_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_run_folder_and_provenance(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.ledger.is_dir() and run.clips.is_dir() and not run.clips_parquet.exists()
    (tmp_path / "vae").write_bytes(b"abc")
    models = {"vae": tmp_path / "vae", "sync_scorer": tmp_path / "absent"}
    save_provenance(run, "train:\n  steps: 3\n", models)
    versions = read_json(run.root / "versions.json")
    assert run.recipe_yaml.read_text() == "train:\n  steps: 3\n"
    assert versions["packages"]["numpy"] == np.__version__
    assert versions["models"] == {"vae": sha256_file(tmp_path / "vae"), "sync_scorer": None}
    assert len(versions["code"]["common"]) == 64
    first = (run.root / "versions.json").read_bytes()
    save_provenance(run, "train:\n  steps: 3\n", models)
    assert (run.root / "versions.json").read_bytes() == first
