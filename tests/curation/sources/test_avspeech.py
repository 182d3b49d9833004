"""AVSpeech rows: grouped by video, none lost, the malformed ones on record."""

import tracemalloc
from pathlib import Path

import pytest

from curation.sources.avspeech import list_avspeech
from curation.sources.remote import SourcesError

A, B = "-abcdefghij", "_bcdefghijk"


def test_rows_of_a_video_come_together_and_keep_their_place(tmp_path: Path) -> None:
    file = tmp_path / "avspeech_train.csv"
    # A byte-order mark before the first id, an empty line, Windows line ends: three ways to lose a row.
    file.write_bytes(
        f"\ufeff{A},1.000000,4.5,0.25,0.75\r\n\r\n{B},0,3,0,1\r\n{A},10,20.5,0.5,0.5".encode(),
    )
    rows = list(list_avspeech(file))
    assert [(row["unit"], row["source"]) for row in rows] == [(A, "avspeech_train"), (B, "avspeech_train")]
    assert rows[0]["url"] == f"https://www.youtube.com/watch?v={A}"
    assert rows[0]["segments"] == [
        {"row_index": 0, "start": 1.0, "end": 4.5, "x": 0.25, "y": 0.75},
        {"row_index": 2, "start": 10.0, "end": 20.5, "x": 0.5, "y": 0.5},
    ]
    assert next(list_avspeech(file, "mine"))["source"] == "mine"


def test_malformed_rows_are_refused_by_line_and_the_others_stay(tmp_path: Path) -> None:
    bad = [
        "id,start,end,x,y", f"{A},1,2,0.5", f"{A},2,1,0.5,0.5", f"{A},nan,2,0.5,0.5", f"{A},1,inf,0.5,0.5",
        f"{A},1,2,320,0.5", f"{A},one,2,0.5,0.5", "short,1,2,0.5,0.5", f"{A},1,2,0.5,0.5,0.5", "../../../etc,1,2,.5,.5",
    ]  # fmt: skip
    good = [f"{A},{number},{number + 1},0.5,0.5" for number in range(len(bad))]
    file = tmp_path / "avspeech_test.csv"
    file.write_bytes(("\n".join(good + bad) + "\n").encode() + b"\xff\xfe,1,2,0.5,0.5\n" + f"{B},1,2,0,0".encode())
    rows = list(list_avspeech(file))
    assert [row["unit"] for row in rows[:2]] == [A, B] and len(rows[0]["segments"]) == len(good)
    refused = rows[2:]
    assert [row["unit"] for row in refused] == [f"avspeech_test.csv:{number}" for number in range(11, 22)]
    assert {row["refused"]["reason"] for row in refused} == {"malformed_row"}
    assert f"Line 12 of avspeech_test.csv is '{A},1,2,0.5'" in refused[1]["refused"]["message"]
    assert rows[1]["segments"][0]["row_index"] == 21  # its place in the file, malformed rows counted


def test_another_file_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,caption\nx.mp4,a person\n")
    with pytest.raises(SourcesError, match="no AVSpeech list .*'path,caption'.*id, start, end, x, y"):
        list_avspeech(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("\n")
    with pytest.raises(SourcesError, match="it is empty"):
        list_avspeech(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match=r"c\.csv does not exist"):
        list_avspeech(tmp_path / "c.csv")


def test_memory_follows_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "avspeech_train.csv"
    names = [f"{number:011d}" for number in range(1000)]
    file.write_text("".join(f"{name},{row}.5,{row + 4}.25,0.25,0.75\n" for row in range(10) for name in names))
    tracemalloc.start()
    counts = [len(row["segments"]) for row in list_avspeech(file)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == [10] * 1000
    assert peak < 120 * 10_000  # bytes a row: 2.6 million rows stay below 320 MB
