from pathlib import Path

import pytest

from common.ledger.jsonlines import JsonLines
from common.runs import DiskFullError


def test_torn_last_line_is_ignored_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = JsonLines(path)
    lines.append({"n": 1})
    lines.append({"n": 2})
    lines.close()
    whole = path.read_bytes()
    for cut in range(len(whole) - 8, len(whole)):  # a kill after any byte of the second line
        path.write_bytes(whole[:cut])
        lines = JsonLines(path)
        lines.append({"n": 3})
        lines.close()
        kept = [1, 2, 3] if cut == len(whole) - 1 else [1, 3]
        assert [row["n"] for row in lines.rows()] == kept


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = JsonLines(tmp_path / "x.jsonl"), JsonLines(tmp_path / "x.jsonl")
    first.append({"n": 1})
    with pytest.raises(RuntimeError, match="being written by another run"):
        second.append({"n": 2})
    first.close()
    second.append({"n": 2})
    assert [row["n"] for row in second.rows()] == [1, 2]


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="x.jsonl could not be written whole"):
        JsonLines(tmp_path / "x.jsonl").append({"n": 1})


def test_no_file_no_rows(tmp_path: Path) -> None:
    assert list(JsonLines(tmp_path / "absent.jsonl").rows()) == []


def test_cleared_rows_leave_the_writer_and_removed_ones_the_file(tmp_path: Path) -> None:
    lines, other = JsonLines(tmp_path / "x.jsonl"), JsonLines(tmp_path / "x.jsonl")
    assert lines.append({"n": 1}) == 8 and lines.append({"n": 2}) == 16
    lines.clear()
    assert list(lines.rows()) == [] and lines.append({"n": 3}) == 8
    with pytest.raises(RuntimeError, match="being written by another run"):
        other.remove()
    lines.remove()
    assert not lines.path.exists() and other.append({"n": 4}) == 8


@pytest.mark.parametrize(
    ("content", "rows", "skipped"),
    [
        (b"", 0, 0),
        (b'{"a": 1}\n{"a": 2', 1, 0),
        (b'{"a": 1}\n{"a\n{"a": 2}\n', 2, 1),
        (b'\0\0\0\n{"a": 1}\n[2]\n', 1, 2),
        (b"\xff\xfe\x80\n", 0, 1),
    ],
)
def test_lines_that_are_passed_over_are_counted(
    tmp_path: Path, content: bytes, rows: int, skipped: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    assert len(list(JsonLines(tmp_path / "train.jsonl").rows())) == rows
    assert (f"train.jsonl: {skipped} lines are damaged" in caplog.text) == bool(skipped) == bool(caplog.text)
