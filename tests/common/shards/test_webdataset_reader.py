from pathlib import Path

import numpy as np
import pytest

from common.shards.sample import ShardError
from common.shards.store import ShardReader
from common.shards.webdataset_reader import WebdatasetReader
from tests.common.shards.test_store import write


def test_windows_equal_those_of_the_seeking_reader(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    ours, streamed = ShardReader(tmp_path), WebdatasetReader(tmp_path, cached=1)
    for row in (7, 0, 4, 3, 4):
        for frames in (1, 2, 9):
            (tensors, meta), (others, same) = ours.window(row, frames), streamed.window(row, frames)
            assert meta == same and list(tensors) == list(others)
            for name, array in tensors.items():
                assert array.dtype == others[name].dtype
                np.testing.assert_array_equal(array, others[name])


def test_the_cache_is_bounded_and_spares_streaming_the_shard_again(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    reader = WebdatasetReader(tmp_path, cached=2)
    for row in (0, 3, 6):
        reader.window(row, 1)
    assert list(reader._shards) == ["shard-000001.tar", "shard-000002.tar"]
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    reader.window(7, 1)
    with pytest.raises(FileNotFoundError):
        reader.window(0, 1)


def test_a_damaged_and_a_torn_shard_are_named(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    tar = tmp_path / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    row = ShardReader(tmp_path).index.to_pylist()[1]
    data[row["offset"] + row["head_bytes"] + row["whole_bytes"] + 3] ^= 1
    tar.write_bytes(data)
    WebdatasetReader(tmp_path).window(0, 1)
    with pytest.raises(ShardError, match="clip001 differs from its checksum in 'latents'"):
        WebdatasetReader(tmp_path).window(1, 1)
    tar.write_bytes(data[: row["offset"] + 700])
    with pytest.raises(ShardError, match="shard-000000.tar.* write the shards again"):
        WebdatasetReader(tmp_path).window(1, 1)
