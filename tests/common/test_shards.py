import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from common.shards import INDEX_SCHEMA, ShardError, ShardReader, ShardWriter, read_index, remove_samples

PATHS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def draw_sample(number: int) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    noise = np.random.default_rng(number)
    tensors = {
        "latents": noise.normal(size=(16, 3 + number % 2, 8, 12)).astype(np.float16),
        "references": noise.normal(size=(4, 16, 8, 12)).astype(np.float16).transpose(0, 1, 3, 2),  # not contiguous
        "text": noise.normal(size=(5 + number, 6)).astype(np.float16),
        "audio": noise.normal(size=(9, 10)).astype(np.float32),
    }
    return f"clip{number:03d}", tensors, {"video_id": f"v{number // 2}", "split": "train", "caption": "ein Mädchen"}


def write(folder: Path, numbers: range, fingerprint: str = "") -> ShardWriter:
    with ShardWriter(folder, 3, fingerprint) as writer:
        for number in numbers:
            writer.add(*draw_sample(number))
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    import webdataset  # slow to import; the killed writers below do without

    write(tmp_path, range(5))
    urls = [str(file) for file in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"clip{n:03d}" for n in range(5)]
    for number, sample in enumerate(samples):
        _, tensors, meta = draw_sample(number)
        read = safetensors.numpy.load(sample["tensors.safetensors"])
        assert set(read) == set(tensors) and json.loads(sample["meta.json"]) == meta
        for name in tensors:
            assert read[name].dtype == tensors[name].dtype
            np.testing.assert_array_equal(read[name], tensors[name])


def test_index_says_where_and_how_much(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    index = read_index(tmp_path)
    assert index.schema == INDEX_SCHEMA
    assert index["clip_id"].to_pylist() == [f"clip{n:03d}" for n in range(5)]
    assert index["shard"].to_pylist() == ["shard-000000.tar"] * 3 + ["shard-000001.tar"] * 2
    row = index.to_pylist()[1]  # 4 latent frames of 8 x 12, 6 text tokens
    assert (row["latent_frames"], row["frames"], row["seconds"], row["tokens_per_frame"]) == (4, 13, 13 / 25, 24)
    assert (row["latent_height"], row["latent_width"], row["text_tokens"], row["video_id"]) == (8, 12, 6, "v0")
    reader = pickle.loads(pickle.dumps(ShardReader(tmp_path)))
    assert len(reader) == 5
    for number in (4, 0, 2):
        tensors, meta = reader.sample(number)
        np.testing.assert_array_equal(tensors["references"], draw_sample(number)[1]["references"])
        assert meta == draw_sample(number)[2]
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        assert tar.getnames()[:2] == ["clip003.tensors.safetensors", "clip003.meta.json"]


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", range(5))
    write(tmp_path / "b", range(5))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").glob("shard-*")}
    writer = write(tmp_path / "a", range(5))  # once more: nothing is rewritten
    assert {file: file.stat().st_mtime_ns for file in before} == before and "clip004" in writer
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


WRITER = """
import os, sys
from pathlib import Path
from common.shards import ShardWriter
from tests.common.test_shards import draw_sample
writer = ShardWriter(Path(sys.argv[1]), 3)
for number in range(int(sys.argv[2])):
    writer.add(*draw_sample(number))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("added", [2, 5])
def test_killed_writer_is_continued_to_the_same_bytes(tmp_path: Path, added: int) -> None:
    write(tmp_path / "whole", range(8))
    killed = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "killed"), str(added)], env=PATHS)
    assert killed.returncode == -9 and not (tmp_path / "killed" / "index.parquet").exists()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("*.tar")}
    assert len(kept) == added // 3
    write(tmp_path / "killed", range(8))
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_tar_without_its_part_of_the_index_is_not_finished(tmp_path: Path) -> None:
    write(tmp_path / "whole", range(8))
    write(tmp_path / "torn", range(8))
    (tmp_path / "torn" / "shard-000001.parquet").unlink()  # killed between the two renames
    writer = ShardWriter(tmp_path / "torn", 3)
    assert "clip002" in writer and "clip003" not in writer and "clip007" not in writer
    with pytest.raises(FileNotFoundError, match="unfinished; run the latents job"):
        read_index(tmp_path / "torn")
    write(tmp_path / "torn", range(8))
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_another_fingerprint_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path, range(5), "a")
    write(tmp_path, range(2, 4), "b")
    assert read_index(tmp_path)["clip_id"].to_pylist() == ["clip002", "clip003"]
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[read_index(tmp_path)["offset"][1].as_py() + 600] ^= 1
    path.write_bytes(data)
    reader = ShardReader(tmp_path)
    reader.sample(0)
    with pytest.raises(ShardError, match="sample clip001 differs from its checksum"):
        reader.sample(1)
    path.unlink()
    with pytest.raises(ShardError, match="is missing but index.parquet names it"):
        reader.sample(0)


@pytest.mark.parametrize(
    ("clip_id", "drop", "message"),
    [
        ("a.b", "", "'a.b' must be without"),
        ("a", "latents", "lacks tensor 'latents'"),
        ("a", "split", "lacks meta 'split'"),
    ],
)
def test_incomplete_samples_are_refused(tmp_path: Path, clip_id: str, drop: str, message: str) -> None:
    _, tensors, meta = draw_sample(0)
    tensors.pop(drop, None)
    meta.pop(drop, None)
    with pytest.raises(ShardError, match=message):
        ShardWriter(tmp_path, 3).add(clip_id, tensors, meta)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ShardError, match="samples_per_shard is 0"):
        ShardWriter(tmp_path, 0)


def test_removed_samples_are_gone_and_the_others_are_untouched(tmp_path: Path) -> None:
    write(tmp_path / "a", range(8))
    write(tmp_path / "without", (0, 2, 3, 4, 5, 6, 7))  # type: ignore[arg-type]
    whole = contents(tmp_path / "a")
    assert remove_samples(tmp_path / "a", ["clip001", "elsewhere"], "new", {"version.json": {"version": 2}}) == 1
    left = contents(tmp_path / "a")
    assert (
        left["shard-000001.tar"] == whole["shard-000001.tar"] and left["shard-000002.tar"] == whole["shard-000002.tar"]
    )
    assert json.loads(left.pop("version.json")) == {"version": 2} and set(left) == set(whole)
    reader = ShardReader(tmp_path / "a")
    assert reader.index["clip_id"].to_pylist() == [f"clip{number:03d}" for number in (0, 2, 3, 4, 5, 6, 7)]
    for number, row in enumerate((0, 2, 3, 4, 5, 6, 7)):
        assert reader.sample(number)[1] == draw_sample(row)[2]
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 4
    assert draw_sample(1)[1]["audio"].tobytes() not in b"".join(left.values())
    writer = ShardWriter(tmp_path / "a", 3, "new")  # it goes on with what is left
    assert "clip000" in writer and "clip001" not in writer and "clip007" in writer
    assert remove_samples(tmp_path / "a", ["clip001"]) == 0


def test_a_shard_may_become_empty(tmp_path: Path) -> None:
    write(tmp_path, range(7))
    assert remove_samples(tmp_path, [f"clip{number:03d}" for number in (3, 4, 5)]) == 3
    assert [ShardReader(tmp_path).sample(n)[1]["video_id"] for n in range(4)] == ["v0", "v0", "v1", "v3"]
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        assert tar.getnames() == []
    assert "clip006" in ShardWriter(tmp_path, 3)


REMOVER = """
import os, sys
from pathlib import Path
import common.shards
real, left = os.replace, [int(sys.argv[2])]
def replace(old, new):
    if left[0] == 0:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    real(old, new)
if left[0] < 0:
    os.rename = lambda old, new: os.kill(os.getpid(), 9)
common.shards.os.replace = replace
common.shards.remove_samples(Path(sys.argv[1]), ["clip001", "clip006"], "", {"a.json": 1})
"""


@pytest.mark.parametrize("moved", [-1, 1, 4])
def test_a_killed_removal_is_all_or_nothing(tmp_path: Path, moved: int) -> None:
    write(tmp_path / "whole", range(8))
    write(tmp_path / "killed", range(8))
    remove_samples(tmp_path / "whole", ["clip001", "clip006"], "", {"a.json": 1})
    killed = subprocess.run([sys.executable, "-c", REMOVER, str(tmp_path / "killed"), str(moved)], env=PATHS)
    assert killed.returncode == -9
    if moved < 0:
        assert read_index(tmp_path / "killed").num_rows == 8
    else:
        with pytest.raises(ShardError, match="run the same takedown again"):
            read_index(tmp_path / "killed")
    assert remove_samples(tmp_path / "killed", ["clip001", "clip006"], "", {"a.json": 1}) == (2 if moved < 0 else 0)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
