import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from common.errors import DamagedFileError
from common.runs import FormatVersionError
from common.shards.index import FORMAT_VERSION, INDEX_SCHEMA, read_index
from common.shards.removal import remove_samples
from common.shards.sample import ShardError
from common.shards.store import ShardReader, ShardWriter

FORMATS = Path(__file__).parents[2] / "assets" / "formats"
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
            stored = tensors[name].swapaxes(0, 1) if name == "latents" else tensors[name]  # frame by frame
            np.testing.assert_array_equal(read[name], stored)


def test_shards_of_format_version_1_are_read_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    old = FORMATS / "shards-1"  # written by commit 35d976c, which recorded no version
    reader = ShardReader(old)
    with ShardWriter(tmp_path, samples_per_shard=4) as writer:
        for row, clip in enumerate(reader.index["clip_id"].to_pylist()):
            tensors, meta = reader.sample(row)
            assert tensors["latents"].shape == (16, 2, 2, 2) and meta["video_id"] == f"video{row}"
            writer.add(clip, tensors, meta)
    assert (tmp_path / "shard-000000.tar").read_bytes() == (old / "shard-000000.tar").read_bytes()
    assert read_index(tmp_path).equals(reader.index)
    assert json.loads((tmp_path / "format.json").read_text()) == {"version": FORMAT_VERSION}


@pytest.mark.parametrize(
    "use", [ShardReader, lambda folder: ShardWriter(folder, 3), lambda f: remove_samples(f, ["x"])]
)
def test_shards_of_a_newer_version_are_refused_and_left_alone(tmp_path: Path, use: Callable[[Path], object]) -> None:
    write(tmp_path, range(5))
    (tmp_path / "format.json").write_text('{"version": 7}')
    before = contents(tmp_path)
    message = "is stored in format version 7, this code reads versions 1 to 1; update .*, or delete the folder and run"
    with pytest.raises(FormatVersionError, match=message):
        use(tmp_path)
    assert contents(tmp_path) == before


def test_index_says_where_and_how_much(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    index = read_index(tmp_path)
    assert index.schema == INDEX_SCHEMA
    assert index["clip_id"].to_pylist() == [f"clip{n:03d}" for n in range(5)]
    assert index["shard"].to_pylist() == ["shard-000000.tar"] * 3 + ["shard-000001.tar"] * 2
    row = index.to_pylist()[1]  # 4 latent frames of 8 x 12, 6 text tokens
    assert (row["latent_frames"], row["frames"], row["seconds"], row["tokens_per_frame"]) == (4, 13, 13 / 25, 24)
    assert (row["latent_height"], row["latent_width"], row["text_tokens"], row["video_id"]) == (8, 12, 6, "v0")
    assert (row["tokens"], row["audio_frames"], row["audio_bytes"], row["text_bytes"]) == (96, 9, 360, 72)
    assert (row["latents_bytes"], row["references_bytes"], row["whole_bytes"]) == (12288, 12288, 12360)
    reader = pickle.loads(pickle.dumps(ShardReader(tmp_path)))
    assert len(reader) == 5
    for number in (4, 0, 2):
        tensors, meta = reader.sample(number)
        np.testing.assert_array_equal(tensors["references"], draw_sample(number)[1]["references"])
        assert meta == draw_sample(number)[2]
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        assert tar.getnames()[:2] == ["clip003.meta.json", "clip003.tensors.safetensors"]


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
from common.shards.store import ShardWriter
from tests.common.shards.test_store import draw_sample
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


@pytest.mark.parametrize("audio", [np.float32, np.int16])
def test_a_window_is_the_beginning_of_the_sample(tmp_path: Path, audio: type) -> None:
    clip_id, tensors, meta = draw_sample(1)  # 4 latent frames, 9 frames of audio features
    if audio is np.int16:
        tensors["audio"] = np.arange(13 * 640, dtype=np.int16)  # a waveform belongs to the clip, not to a frame
    with ShardWriter(tmp_path, 3) as writer:
        writer.add(*draw_sample(0))
        writer.add(clip_id, tensors, meta)
    reader = ShardReader(tmp_path)
    for frames, sound in ((1, 1), (2, 5), (3, 9), (4, 9), (9, 9)):
        window, read = reader.window(1, frames)
        assert set(window) == set(tensors) and read == meta
        np.testing.assert_array_equal(window["latents"], tensors["latents"][:, :frames])
        kept = tensors["audio"] if audio is np.int16 else tensors["audio"][:sound]
        for name, expected in (("audio", kept), ("text", tensors["text"]), ("references", tensors["references"])):
            np.testing.assert_array_equal(window[name], expected)
            assert window[name].dtype == expected.dtype
    with pytest.raises(ShardError, match="A window of 0 latent frames"):
        reader.window(1, 0)


def test_any_changed_byte_is_noticed_by_who_is_given_it(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    path, reader = tmp_path / "shard-000000.tar", ShardReader(tmp_path)
    whole = path.read_bytes()
    row = reader.index.to_pylist()[1]
    early = row["offset"] + row["head_bytes"] + row["whole_bytes"] + row["latents_bytes"] // row["latent_frames"]
    late = row["offset"] + row["head_bytes"] + row["whole_bytes"] + row["latents_bytes"] + row["audio_bytes"]
    for place in [*range(row["offset"] + 3, late, 997), late - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ShardError, match="sample clip001 differs from its checksum"):
            reader.sample(1)
        if place < early:
            with pytest.raises(ShardError, match="sample clip001 differs from its checksum"):
                reader.window(1, 1)
    reader.window(1, 1)  # the last byte, which is still wrong, is not its own
    reader.sample(0)
    path.write_bytes(whole[: late - 1])
    with pytest.raises(ShardError, match="sample clip001 differs from its checksum"):
        reader.sample(1)
    path.unlink()
    with pytest.raises(ShardError, match="is missing but index.parquet names it"):
        reader.sample(0)


def test_an_index_of_an_older_layout_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    for file in (tmp_path / "index.parquet", tmp_path / "shard-000000.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["head_bytes"]), file)
    with pytest.raises(ShardError, match="lacks the column 'head_bytes': its shards are of an older layout"):
        read_index(tmp_path)
    assert "clip000" not in ShardWriter(tmp_path, 3)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("offset", -512, "'offset' is -512, expected at least 0"),
        ("size", 0, "'size' is 0, expected at least 1"),
        ("latent_frames", -(2**31), "'latent_frames' is"),
        ("shard", "../../other.tar", "it names the shard"),
        ("clip_id", None, "a sample without 'clip_id'"),
        ("offset", 0, "sample clip001 begins before the one before it ends"),
        ("offset", 2**63 - 1, "sample clip002 begins before the one before it ends"),
    ],
)
def test_an_index_of_impossible_places_is_damaged(tmp_path: Path, column: str, value: object, words: str) -> None:
    write(tmp_path / "shards", range(3))
    file = tmp_path / "shards" / "index.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), file)
    with pytest.raises(DamagedFileError, match=re.escape(words)) as error:
        read_index(file.parent)
    assert "delete it and run `omniavatar latents`, which merges it again" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage of some length"])
def test_a_damaged_index_that_is_deleted_is_merged_again_from_its_parts(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "shards", range(5))
    before, file = contents(tmp_path / "shards"), tmp_path / "shards" / "index.parquet"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match="delete it and run `omniavatar latents`, which merges it again"):
        read_index(file.parent)
    file.unlink()
    with ShardWriter(file.parent, 3) as writer:
        assert "clip004" in writer  # as the job asks before it encodes anything
    assert contents(file.parent) == before


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
