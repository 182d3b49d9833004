"""A grid and a funnel over a small table whose counts are known, and over one drawn at random against `select`."""

from dataclasses import replace
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import write_clips
from curation.config import SelectConfig
from curation.decide.select import select
from curation.decide.yields import draw_yield, funnel_table, hours_lines, parse_axis, yield_lines, yield_table
from curation.reporting.summary import SOURCES_SCHEMA
from tests.curation.decide.drawn_rows import GOOD, draw_rows

HOUR = 3600.0
CONFIG = SelectConfig(max_seconds=2 * HOUR)  # rows an hour long are easy to add up


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten rows of an hour: sync_c 0..9; the even ones of low quality; one with a second face; one without scores."""
    rows = []
    for number in range(10):
        named = {"clip_id": f"c{number}", "video_id": f"v{number}", "duration": HOUR, "static_pct": None}
        row = GOOD | named | {"sync_c": float(number)}
        rows.append(row | {"iqa_1to5": 2.0 if number % 2 == 0 else 3.0, "face_track_id": 0, "n_faces_median": 1.0})
    rows[9]["n_faces_median"] = 2.0
    rows.append(rows[7] | {"clip_id": "waiting", "iqa_1to5": None})
    write_clips(
        tmp_path / "clips.parquet", [row | fields for row, fields in zip(rows, select(CONFIG, rows), strict=True)]
    )
    sources = [{"video_id": row["video_id"], "state": "kept", "duration": 1.5 * HOUR} for row in rows]
    sources.append({"video_id": "bad", "state": "rejected", "reason": "no_audio", "duration": HOUR / 2})
    pq.write_table(pa.Table.from_pylist(sources, SOURCES_SCHEMA), tmp_path / "sources.parquet")
    return tmp_path


def test_each_cell_holds_the_hours_that_are_left(run: Path) -> None:
    table = yield_table(run, CONFIG, {"min_sync_c": (4.0, 6.0), "min_iqa": (1.0, 2.6)})
    # 4 5 6 7 8 and 5 7; then 6 7 8 and 7; 9 has two faces throughout.
    assert table["hours"].to_pylist() == [5.0, 2.0, 3.0, 1.0] == table["clips"].to_pylist()
    assert table["pending_hours"].to_pylist() == [1.0] * 4
    assert yield_lines(table) == [
        "hours kept; down min_sync_c, across min_iqa",
        "                 1       2.6",
        "       4      5.00      2.00",
        "       6      3.00      1.00",
    ]
    alone = yield_lines(yield_table(run, CONFIG, {"max_faces": (1, 2)}))
    assert [line.split() for line in alone] == [
        ["max_faces", "clips", "hours"], ["1", "2", "2.00"], ["2", "3", "3.00"],
    ]  # fmt: skip


def test_every_lost_hour_is_explained_once(run: Path) -> None:
    funnel = {row.pop("reason"): row for row in funnel_table(run, CONFIG).to_pylist()}
    counts = {
        reason: tuple(row[f"{kind}_clips"] for kind in ("alone", "first", "last")) for reason, row in funnel.items()
    }
    assert counts == {
        "dubbed": (1, 1, 1),  # of 0, 1, 2 only 1 has a picture fit to tell dubbing from bad sync
        "low_sync": (3, 3, 1),
        "low_quality": (5, 3, 3),
        "needs quality_scorer": (1, 1, 1),
        "several_faces": (1, 1, 1),
    }
    assert hours_lines(run, CONFIG) == [
        "     17.00 h  in 12 sources",
        "     -0.50 h  no_audio: 1 sources",
        "     -5.50 h  in no clip (outside the spans of the data set, or less than a frame)",
        "     -3.00 h  low_quality: 3 of 11 clips; 3.00 h of 3 clips have no other fault",
        "     -3.00 h  low_sync: 3 of 11 clips; 1.00 h of 1 clips have no other fault",
        "     -1.00 h  dubbed: 1 of 11 clips; 1.00 h of 1 clips have no other fault",
        "     -1.00 h  needs quality_scorer: 1 of 11 clips; 1.00 h of 1 clips have no other fault",
        "     -1.00 h  several_faces: 1 of 11 clips; 1.00 h of 1 clips have no other fault",
        "      2.00 h  kept: 2 clips",
    ]


def test_the_first_reasons_add_up_to_all_that_is_lost(tmp_path: Path) -> None:
    rows, config = draw_rows(800, 3), replace(SelectConfig(), min_sync_c=5.0)
    write_clips(tmp_path / "clips.parquet", rows)
    decided = [(fields, row["duration"]) for row, fields in zip(rows, select(config, rows), strict=True)]
    lost = [(fields["reasons"], seconds) for fields, seconds in decided if fields["decision"] != "kept"]
    table = funnel_table(tmp_path, config)
    assert sum(table["first_clips"].to_pylist()) == len(lost) > 100
    assert sum(table["first_hours"].to_pylist()) == pytest.approx(sum(seconds for _, seconds in lost) / HOUR)
    assert sum(table["last_clips"].to_pylist()) == sum(len(reasons) == 1 for reasons, _ in lost)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_grid_can_be_drawn(run: Path, tmp_path: Path, suffix: str) -> None:
    table = yield_table(run, CONFIG, {"min_sync_c": (2.0, 4.0, 6.0), "min_iqa": (1.0, 2.6)})
    path = tmp_path / f"yield{suffix}"
    draw_yield(table, path)
    if suffix == ".png":
        assert cv2.imread(str(path)).std() > 20
    else:
        text = path.read_text()
        assert text.count("<svg") == 1 and "hours kept" in text
    draw_yield(yield_table(run, CONFIG, {"min_iqa": (1.0, 2.6)}), tmp_path / f"line{suffix}")
    with pytest.raises(ValueError, match=r"expected a .png or .svg"):
        draw_yield(table, tmp_path / "yield.txt")


def test_axes_are_read_from_text(tmp_path: Path) -> None:
    assert parse_axis("min_sync_c=2:4:0.5") == ("min_sync_c", (2.0, 2.5, 3.0, 3.5, 4.0))
    assert parse_axis("max_faces=2,1") == ("max_faces", (1.0, 2.0))
    for text, message in (("sync=1", "no threshold"), ("min_iqa=a,b", "2:8:0.5"), ("min_iqa=1:2:0", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            parse_axis(text)
    with pytest.raises(ValueError, match="0 combinations"):
        yield_table(tmp_path, CONFIG, {})
    with pytest.raises(FileNotFoundError, match="run the curation job"):
        yield_table(tmp_path, CONFIG)
