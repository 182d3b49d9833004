"""Whatever is planted in good shards is found, and named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.ledger.jsonlines import JsonLines
from common.runs import RunFolder
from common.shards.index import INDEX_SCHEMA, read_index
from common.shards.store import ShardWriter
from latents.verify import LOG, shard_stamp, verify_shards

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"


def write(run: RunFolder, **wrong: object) -> None:
    """Three samples in two shards; `wrong` is metadata of the second."""
    noise = np.random.default_rng(0)
    with ShardWriter(run.shards, 2) as writer:
        for name in ("a", "b", "c"):
            tensors = {"latents": noise.standard_normal((16, 3, 4, 4)), "text": noise.standard_normal((5, 6))}
            tensors["audio"] = noise.standard_normal((9, 7))
            half = {key: array.astype(np.float16) for key, array in tensors.items()}
            writer.add(name, half, {"video_id": "v", "split": "train"} | (wrong if name == "b" else {}))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    write(run)
    return run


def test_good_shards_are_good(run: RunFolder) -> None:
    verdict = verify_shards(run)
    assert verdict.bad == [] and verdict.samples == 3
    assert verdict.size == sum(file.stat().st_size - 1024 for file in run.shards.glob("*.tar"))
    assert not (run.cache / LOG).exists()


def flip(place: Callable[[dict[str, int]], int]) -> Callable[[RunFolder], None]:
    """Change one byte of the second sample."""

    def damage(run: RunFolder) -> None:
        row = read_index(run.shards).to_pylist()[1]
        data = bytearray((run.shards / FIRST).read_bytes())
        data[row["offset"] + place(row)] ^= 1
        (run.shards / FIRST).write_bytes(data)

    return damage


def change_index(run: RunFolder) -> None:
    for file in (run.shards / "index.parquet", run.shards / "shard-000000.parquet"):
        rows = pq.read_table(file).to_pylist()
        rows[1]["text_tokens"] = 4
        pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), file)


def append(run: RunFolder) -> None:
    with open(run.shards / SECOND, "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("damage", "named", "why"),
    [
        (flip(lambda row: 3), "b", "differs from its checksum"),  # in a tar header
        (flip(lambda row: row["head_bytes"] + 5), "b", "differs from its checksum in 'text'"),
        (flip(lambda row: row["size"] - 1), "b", "something else than zeros after its tensors"),
        (lambda run: (run.shards / SECOND).unlink(), SECOND, "is missing"),
        (append, SECOND, "something else than the mark of its end"),
        (change_index, "b", "5 text tokens, the index says (3, 4, 4) and 4"),
        (lambda run: write(RunFolder(run.root), sha256="0" * 64), "b", "000000000000 when it was encoded"),
    ],
)
def test_what_is_wrong_is_named(run: RunFolder, damage: Callable[[RunFolder], None], named: str, why: str) -> None:
    for file in run.shards.iterdir() if why.endswith("encoded") else ():
        file.unlink()
    damage(run)
    bad = verify_shards(run).bad
    assert [name for name, _ in bad] == [named] and why in bad[0][1]


def test_an_index_that_differs_from_its_parts_is_named(run: RunFolder) -> None:
    rows = pq.read_table(run.shards / "index.parquet").to_pylist()
    rows[1]["split"] = "test"
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), run.shards / "index.parquet")
    assert [name for name, _ in verify_shards(run).bad] == ["index.parquet"]


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    run, ones = RunFolder(tmp_path), np.ones((16, 1, 2, 2), np.float16)
    with ShardWriter(run.shards, 2) as writer:
        for name, value in (("good", 1), ("bad", np.nan)):
            tensors = {"latents": ones * np.float16(value), "text": np.ones((1, 2), np.float16)}
            writer.add(name, tensors, {"video_id": "v", "split": "train"})
    assert verify_shards(run).bad == [("bad", "is not finite in latents")]


def test_one_that_was_stopped_goes_on(run: RunFolder) -> None:
    (run.shards / SECOND).rename(run.shards / "gone")
    first = verify_shards(run)
    assert [name for name, _ in first.bad] == [SECOND]
    (run.shards / "gone").rename(run.shards / SECOND)
    # As a stopped one leaves it: the first shard read, with a finding that only the log knows.
    log = JsonLines(run.cache / LOG)
    held = dict(enumerate(read_index(run.shards).to_pylist()[:2]))
    log.append({"shard": FIRST, "stamp": shard_stamp(run.shards / FIRST, held), "bad": [["a", "known"]]})
    log.close()
    assert verify_shards(run).bad == [("a", "known")]
    assert verify_shards(run).bad == []  # that one came to its end; all is read again
