from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import CLIP_SCHEMA, GROUP_ROWS, ClipError, clip_id, read_clips, stream_clips, write_clips


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"clip_id": clip_id("video", number, number + 3000, "cut-1"), "t_start": float(number)} | fields


def test_clip_id_depends_on_every_part_and_never_changes() -> None:
    parts = [("v", 0, 3000, "1"), ("w", 0, 3000, "1"), ("v", 1, 3000, "1"), ("v", 0, 3001, "1"), ("v", 0, 3000, "2")]
    ids = [clip_id(*part) for part in parts]
    assert len(set(ids)) == 5 and ids[0] == "dbedeb0764a2aca7"
    assert clip_id("v1", 1, 2, "x") != clip_id("v", 11, 2, "x")


def test_every_field_of_the_clip_record_is_there() -> None:
    spec = (
        "clip_id video_id source row_index t_start t_end duration fps_src width height codec audio_rate "
        "video_start_pts audio_start_pts shot_id face_track_id n_faces_median face_px face_area_pct yaw_p50 pitch_p50 "
        "roll_p50 xy_agreement framing wrist_visible_pct sync_c sync_d sync_offset sync_offset_applied sync_windows "
        "asd_speaking_pct iqa_1to5 ase_1to5 iqa_variant text_area_pct speech_pct snr_db music_ratio dup_group "
        "static_pct caption caption_model split decision reasons stage_versions bytes_uri sha256 run_id"
    )
    assert set(spec.split()) <= set(CLIP_SCHEMA.names)
    assert all(field.metadata[b"meaning"] for field in CLIP_SCHEMA)


def test_rows_come_back_with_lists_and_maps(tmp_path: Path) -> None:
    rows = [row(5, reasons=["off_sync", "static"], stage_versions={"sync": "f", "probe": "e"}), row(1, sync_offset=-3)]
    write_clips(tmp_path / "clips.parquet", rows)
    back = {clip["clip_id"]: clip for clip in read_clips(tmp_path / "clips.parquet")}
    assert list(back) == sorted(back)
    first, second = (back[each["clip_id"]] for each in rows)
    assert first["reasons"] == ["off_sync", "static"] and first["stage_versions"] == {"probe": "e", "sync": "f"}
    assert second["sync_offset"] == -3 and second["reasons"] is None and second["caption"] is None
    write_clips(tmp_path / "again.parquet", back.values())
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "clips.parquet").read_bytes()


def test_equal_rows_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [row(n, sync_c=n / 7, stage_versions={"b": "1", "a": "2"}) for n in range(50)]
    write_clips(tmp_path / "a.parquet", rows)
    turned = [dict(reversed(each.items())) | {"stage_versions": {"a": "2", "b": "1"}} for each in reversed(rows)]
    write_clips(tmp_path / "b.parquet", iter(turned))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_more_rows_than_are_held_at_once(tmp_path: Path) -> None:
    """A generator of rows in falling order: sorted, in row groups of one size, with a doubled id found far apart."""
    count, path, most = 2 * GROUP_ROWS + 10, tmp_path / "clips.parquet", 0

    def rows(last: int) -> Iterator[dict[str, Any]]:
        nonlocal most
        for n in range(count - 1, last, -1):
            most = max(most, pa.total_allocated_bytes())
            yield {"clip_id": f"{n:016x}", "sync_c": n / 3, "stage_versions": {"cut": "a"}, "reasons": ["x"] * (n % 3)}

    write_clips(path, rows(-1))
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sizes == [GROUP_ROWS, GROUP_ROWS, 10] and most < 200e6  # as Arrow all rows take twice that
    streamed = enumerate(stream_clips(path, ["clip_id", "sync_c", "reasons"]))
    assert all(row == {"clip_id": f"{n:016x}", "sync_c": n / 3, "reasons": ["x"] * (n % 3)} for n, row in streamed)
    whole = path.read_bytes()
    with pytest.raises(ClipError, match=f"'{count - 5:016x}' is there twice"):
        write_clips(path, chain(rows(count - 10), [{"clip_id": f"{count - 5:016x}"}]))
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_duckdb_asks_lists_and_maps(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips.parquet", [row(1, reasons=["static"], stage_versions={"sync": "f"}), row(2)])
    query = f"SELECT stage_versions['sync'] FROM '{tmp_path}/clips.parquet' WHERE list_contains(reasons, 'static')"
    assert duckdb.sql(query).fetchall() == [("f",)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1, synk_c=1.0)], "Field 'synk_c' is not in the clip table; did you mean 'sync_c'"),
        ([row(1), row(1)], "is there twice"),
        ([{"t_start": 1.0}], "has no clip_id"),
        ([row(1), row(2, width="wide")], "field 'width' is 'wide', expected int64"),
        ([row(1, reasons="static")], "field 'reasons' is 'static', expected list"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ClipError, match=message):
        write_clips(tmp_path / "clips.parquet", rows)
    assert not list(tmp_path.iterdir())


def test_absent_table_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the curation job"):
        read_clips(tmp_path / "clips.parquet")
