"""The page of a small run whose hours, reasons and downloads are known; it needs nothing from outside."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.clips import write_clips
from common.ledger.store import Ledger, Outcome
from common.media.write import write_video
from common.runs import RunFolder, write_json
from curation.config import DownloadConfig, SelectConfig
from curation.decide.select import select
from curation.reporting.pilot import read_pilot
from curation.reporting.plan import Machines, listed, make_plan
from curation.reporting.report import THUMBNAIL_HEIGHT, histogram, save_plan, thumbnail, write_curation_report
from curation.reporting.summary import SOURCES_SCHEMA
from tests.curation.decide.drawn_rows import GOOD

HOUR = 3600.0
CONFIG = SelectConfig(max_seconds=2 * HOUR)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Eight hours: sync_c 0, 2 .. 14, of which the first two are too low; v0 by one exit, the rest by another."""
    run = RunFolder(tmp_path / "a <b> run")
    face = {"face_track_id": 0, "n_faces_median": 1.0, "static_pct": None, "iqa_1to5": 4.0, "duration": HOUR}
    rows = [
        GOOD | face | {"clip_id": f"c{n}", "video_id": f"v{n}", "sync_c": 2.0 * n, "sync_offset": 3} for n in range(8)
    ]
    rows = [row | {"sync_offset_applied": 3 if n else 0} for n, row in enumerate(rows)]
    run.root.mkdir()
    write_clips(run.clips_parquet, [row | fields for row, fields in zip(rows, select(CONFIG, rows), strict=True)])
    sources = [{"video_id": f"v{n}", "state": "kept", "duration": HOUR} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(sources, SOURCES_SCHEMA), run.root / "sources.parquet")
    ledger = Ledger(run.ledger)
    with ledger.open("download", "f") as log:
        for n in range(8):
            outputs = {"bytes": 10**9, "exit": "second" if n else "office", "forbidden": n % 2}
            log.append((f"v{n}", ""), Outcome(f"v{n}", "kept", outputs=outputs, cpu_seconds=900))
    with ledger.open("cut", "f") as log:
        for n in range(8):
            log.append((f"c{n}", ""), Outcome(f"c{n}", "kept", cpu_seconds=1800))
    write_video(run.clips / "c0.mp4", np.full((10, 64, 128, 3), (200, 30, 30), np.uint8), None)
    return run


def text_of(page: Path) -> str:
    """What a reader sees."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S).split())


def test_the_page_tells_hours_reasons_and_exits(run: RunFolder) -> None:
    text = text_of(write_curation_report(run, CONFIG))
    assert "a &lt;b&gt; run" in text
    assert "8.00 h in 8 sources" in text and "6.00 h kept: 6 clips" in text
    assert "-2.00 h dubbed: 2 of 8 clips" in text and "dubbed 2 2.00" in text
    assert "2.5: 8 clips" in text and "-0.5: 7 clips 2.5: 1 clips" in text  # offsets before and after
    assert "office 1 1 0 0 1.00 0" in text and "second 7 7 0 0 7.00 4" in text
    assert "cut – 4.000 – 0.000 – 0.000" in text  # nothing was forecast
    assert "Planted faults" not in text


def test_the_page_needs_nothing_from_outside_and_stays_small(run: RunFolder) -> None:
    page = write_curation_report(run, CONFIG)
    first = page.read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', first)) == {"data:"}
    assert "@import" not in first and "url(" not in first and len(first) < 100_000
    assert write_curation_report(run, CONFIG).read_text() == first


def test_a_forecast_is_held_against_what_came(run: RunFolder) -> None:
    rows = [{"unit": f"v{n}", "url": "https://host/video"} for n in range(16)]
    save_plan(run, make_plan(listed(rows), DownloadConfig(), Machines(), read_pilot(run.root), ("download", "cut")))
    fault = {"kind": "too_short", "cases": 9, "found": 8, "wrong_reason": 1, "recall": 0.89, "precision": 1.0}
    found = {"faults": [fault], "false_refusals": 2, "offsets": {"cases": 5, "exact": 4}}
    write_json(run.report / "faults.json", found)
    text = text_of(write_curation_report(run, CONFIG))
    assert "download 4.000 [4.000, 4.000] 2.000 0.000 0.000 16.000 [16.000, 16.000] 8.000" in text
    assert "cut 8.000 [8.000, 8.000] 4.000" in text
    assert "too short 9 8 1 0.89 1.00" in text and "exactly: 4 of 5" in text


def test_bars_stand_on_their_side_of_the_threshold() -> None:
    plot = histogram("sync", [(3.5, 1), (3.75, 3), (4.0, 2)], 0.25, 4.0)
    assert [bar["refused"] for bar in plot["bars"]] == [True, True, False]
    assert [bar["height"] for bar in plot["bars"]] == [43.33, 130.0, 86.67]
    assert plot["mark"]["x"] == plot["bars"][2]["x"] and plot["clips"] == 6
    # A threshold beyond all scores is still drawn inside.
    assert 0 <= histogram("sync", [(1.0, 1)], 0.25, 4.0)["mark"]["x"] <= 560
    assert histogram("sync", [], 0.25, 4.0) == {"title": "sync", "clips": 0}


def test_thresholds_of_the_page_are_those_given(run: RunFolder) -> None:
    lax = text_of(write_curation_report(run, replace(CONFIG, min_sync_c=1.0)))
    assert "7.00 h kept: 7 clips" in lax and "dubbed 1 1.00" in lax


def test_a_run_without_clips_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the curation job"):
        write_curation_report(RunFolder(tmp_path), CONFIG)


def test_the_middle_frame_becomes_a_small_picture(tmp_path: Path) -> None:
    frames = np.zeros((11, 64, 128, 3), np.uint8)
    frames[4:7] = (200, 30, 30)
    write_video(tmp_path / "clip.mp4", frames, None)
    address = thumbnail(tmp_path / "clip.mp4")
    assert address is not None and len(address) < 4000
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,")))))
    assert picture.shape == (THUMBNAIL_HEIGHT, 2 * THUMBNAIL_HEIGHT, 3)
    assert np.abs(picture.mean(axis=(0, 1)) - (200, 30, 30)).max() < 15


def test_no_picture_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>gone</html>" * 50)
    assert thumbnail(tmp_path / "page.mp4") is None and thumbnail(tmp_path / "absent.mp4") is None


def test_hostile_names_are_text_on_the_page(run: RunFolder) -> None:
    hostile = "\"><script>alert('$x$')</script>"
    with Ledger(run.ledger).open("download", "g") as log:
        log.append(("v9", ""), Outcome("v9", "rejected", outputs={"exit": hostile}))
    fault = {"kind": hostile, "cases": 9, "found": 8, "wrong_reason": 1, "recall": 0.89, "precision": 1.0}
    found = {"faults": [fault], "false_refusals": 2, "offsets": {"cases": 5, "exact": 4}}
    write_json(run.report / "faults.json", found)
    page = write_curation_report(run, CONFIG).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") == 2
