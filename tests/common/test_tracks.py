"""The track table: sorted, equal bytes for equal rows, asked by its view."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.query import connect
from common.tracks import GROUP_ROWS, TRACK_FIELDS, TRACKS_FILE, stream_tracks, write_tracks

ROWS: list[dict[str, Any]] = [
    {"clip_id": clip, "track_id": number, "boxes": [[1.5, 2.0, 3.25, 4.0]] * 3, "is_speaker": number == 0}
    for clip in ("b", "a")
    for number in (1, 0)
]


def test_rows_are_sorted_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    write_tracks(tmp_path / "one.parquet", ROWS)
    write_tracks(tmp_path / "two.parquet", iter(ROWS[::-1]))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    stored = list(stream_tracks(tmp_path / "one.parquet"))
    assert [(row["clip_id"], row["track_id"]) for row in stored] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert stored[0]["boxes"] == [[1.5, 2.0, 3.25, 4.0]] * 3 and stored[0]["sync_c"] is None
    assert list(tmp_path.iterdir()) == sorted([tmp_path / "one.parquet", tmp_path / "two.parquet"])


def test_every_column_says_what_it_means_and_the_file_which_format_it_is(tmp_path: Path) -> None:
    write_tracks(tmp_path / TRACKS_FILE, [])
    schema = pq.read_schema(tmp_path / TRACKS_FILE)
    assert {field.name: field.metadata[b"meaning"].decode() for field in schema} == {
        name: meaning for name, _, meaning in TRACK_FIELDS
    }
    assert schema.metadata[b"format"] == b"tracks 1"


def test_the_view_counts_faces_and_is_there_without_a_file(tmp_path: Path) -> None:
    question = "SELECT clip_id, count(*), max(len(boxes)) FROM tracks GROUP BY 1 ORDER BY 1"
    with connect(tmp_path) as database:
        assert database.sql(question).fetchall() == []
    write_tracks(tmp_path / TRACKS_FILE, ROWS)
    with connect(tmp_path) as database:
        assert database.sql(question).fetchall() == [("a", 2, 3), ("b", 2, 3)]


def test_a_large_table_is_written_piece_by_piece(tmp_path: Path) -> None:
    class Row(dict[str, Any]):
        alive = most = 0

        def __init__(self, number: int) -> None:
            super().__init__(clip_id=f"{number:05}", track_id=0, boxes=[[0.0] * 4])
            Row.alive += 1
            Row.most = max(Row.most, Row.alive)

        def __del__(self) -> None:
            Row.alive -= 1

    numbers = list(range(3 * GROUP_ROWS - 100))
    write_tracks(tmp_path / "one.parquet", map(Row, numbers))
    write_tracks(tmp_path / "two.parquet", map(Row, numbers[::-1]))
    assert Row.most <= GROUP_ROWS + 1  # a row with the boxes of 20 s is 100 kB of Python objects
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    stored = pq.ParquetFile(tmp_path / "one.parquet").metadata
    groups = [stored.row_group(number).num_rows for number in range(stored.num_row_groups)]
    assert groups == [GROUP_ROWS, GROUP_ROWS, GROUP_ROWS - 100]
