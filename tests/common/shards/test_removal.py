import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from common.shards.index import read_index
from common.shards.removal import remove_samples
from common.shards.sample import ShardError
from common.shards.store import ShardReader, ShardWriter
from tests.common.shards.test_store import PATHS, contents, draw_sample, write


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
import common.shards.removal
real, left = os.replace, [int(sys.argv[2])]
def replace(old, new):
    if left[0] == 0:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    real(old, new)
if left[0] < 0:
    os.rename = lambda old, new: os.kill(os.getpid(), 9)
common.shards.removal.os.replace = replace
common.shards.removal.remove_samples(Path(sys.argv[1]), ["clip001", "clip006"], "", {"a.json": 1})
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
