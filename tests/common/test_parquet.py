"""Damage of Parquet and JSON files of a run: one sentence that names the file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DamagedFileError
from common.ledger.jsonlines import JsonLines
from common.parquet import check_parquet, read_batches, read_schema, read_table
from common.runs import atomic_write, read_json, read_text

READERS = {
    "schema": read_schema,
    "table": read_table,
    "batches": lambda file: list(read_batches(file, 10)),
    "check": lambda file: check_parquet([file]),
    "json": read_json,
    "text": read_text,
    "lines": lambda file: list(JsonLines(file).rows()),
    "write": lambda file: _write(file),
}


def _write(file: Path) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text("new")


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, reader: str) -> None:
    file = tmp_path / "a=b" / "clips.parquet"
    (file / "in it").mkdir(parents=True)
    with pytest.raises(DamagedFileError, match=r"clips\.parquet is a folder \(expected a file\); delete it and"):
        READERS[reader](file)
    assert [item.name for item in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "zeros"])
@pytest.mark.parametrize("reader", ["table", "batches"])
def test_a_damaged_table_is_named(tmp_path: Path, reader: str, damage: str) -> None:
    file = tmp_path / "clips.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), file)
    whole = file.read_bytes()
    contents = {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"PAR1??PAR1", "zeros": bytes(len(whole))}
    file.write_bytes(contents[damage])
    with pytest.raises(DamagedFileError, match=r"clips\.parquet is damaged \(.*; delete it and run"):
        READERS[reader](file)


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "clips.parquet")
    with pytest.raises(
        DamagedFileError, match=r"clips\.parquet is damaged \(it has no column 'b'\); delete it and run"
    ):
        read_table(tmp_path / "clips.parquet", columns=["b"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b'{"key": ', "is not valid JSON"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (bytes(40), "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", r"it holds \[1, 2\], expected an object"),
        (b'"key"', "expected an object"),
        (b"null", "it holds None, expected an object"),
        (b'{"other": 1}', "it has no entry 'key'"),
    ],
)
def test_damaged_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "logs" / "steps" / "train.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=words) as error:
        read_json(file, "key")
    assert str(file) in str(error.value) and "run the step of its name again" in str(error.value)
