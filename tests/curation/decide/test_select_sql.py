"""Rows and thresholds at random, many values on or beside a threshold: SQL decides as `select` does, row by row."""

import itertools
from dataclasses import fields, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from common.clips import CLIP_SCHEMA
from curation.config import SelectConfig
from curation.decide.select import select
from curation.decide.select_sql import FAULTS, decided_sql, yield_sql

# Field -> the values around which rows are drawn.
VALUES: dict[str, tuple[Any, ...]] = {
    "duration": (2.96, 3.0, 6.12, 20.0, 20.04), "fps_src": (12.0, 20.0, 25.0, 29.97), "width": (255, 256, 640),
    "height": (200, 256, 480), "static_pct": (0.0, 1.37, 20.0, 80.0, 80.01), "face_px": (31.9, 32.0, 100.0),
    "face_track_id": (0, 1), "n_faces_median": (0.0, 1.0, 1.5, 2.0), "text_area_pct": (0.0, 0.8, 0.9),
    "speech_pct": (29.9, 30.0, 90.0), "music_ratio": (0.0, 0.36, 0.37), "asd_speaking_pct": (24.0, 25.0, 80.0),
    "sync_c": (1.9, 2.0, 3.99, 4.0, 5.5, 7.0), "sync_offset": (-3, -1, 0, 1, 2), "sync_offset_applied": (-3, 0, 2),
    "sync_offset_first": (-2, 0, 1), "sync_offset_last": (0, 2, 3), "sync_drift": (-3, 0, 1, 2, 4),
    "sync_drift_c": (3.9, 4.0, 6.0), "lip_motion": (0.39, 0.4, 2.0), "xy_agreement": (0.0, 0.15, 0.16),
    "iqa_1to5": (2.59, 2.6, 3.3, 4.0), "dup_group": ("c000001", "c000002"), "test_overlap": ("ref",),
    "caption": ("One speaks.",),
    "reasons": (["too_long"], ["truncated"], ["low_sync", "failed sync"], []), "decision": ("rejected", "failed"),
}  # fmt: skip
DRIFT = ("sync_offset_first", "sync_offset_last", "sync_drift", "sync_drift_c")
NEVER_NULL = ("duration", "fps_src", "width", "height", "decision")
GOOD = {"duration": 5.0, "fps_src": 25.0, "width": 640, "height": 480, "sync_c": 6.0, "iqa_1to5": 4.0, "caption": "One"}


def draw_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows that are good but for some of their fields."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row = {name: None for name in CLIP_SCHEMA.names} | GOOD | {"clip_id": f"c{number:06d}", "video_id": "v"}
        row |= {"decision": "rejected", "face_track_id": 0, "n_faces_median": 1.0}
        together = DRIFT if rng.random() < 0.2 else ()  # of which one alone says nothing
        for name in (*rng.choice(list(VALUES), rng.integers(0, 9), replace=False).tolist(), *together):
            drawn = VALUES[name][rng.integers(len(VALUES[name]))]
            row[name] = None if name not in NEVER_NULL and rng.random() < 0.2 else drawn
        rows.append(row)
    return rows


def draw_config(seed: int) -> SelectConfig:
    """Thresholds at or between the values that rows have."""
    rng = np.random.default_rng(seed)
    changed = {}
    for field in fields(SelectConfig)[:-2]:
        factor = rng.choice([0.5, 0.9, 1.0, 1.0, 1.1, 1.5])
        changed[field.name] = type(field.default)(field.default * factor)  # type: ignore[operator]
    return SelectConfig(**changed)  # type: ignore[arg-type]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, CLIP_SCHEMA)


@pytest.mark.parametrize("seed", range(6))
def test_every_row_gets_the_same_decision_for_the_same_reasons(seed: int) -> None:
    config = draw_config(seed) if seed else SelectConfig()
    rows = draw_rows(2000, seed)
    expected = [select(config, row) for row in rows]
    with duckdb.connect() as connection:
        connection.register("clips", table(rows))
        found = connection.sql(decided_sql(config)).to_arrow_table().sort_by("clip_id").to_pylist()
    for row, said, wanted in zip(rows, found, expected, strict=True):
        assert (said["decision"], said["reasons"]) == (wanted["decision"], wanted["reasons"]), row
    if not seed:  # the rows are worth comparing: all decisions and nearly all reasons occur
        assert {each["decision"] for each in expected} == {"kept", "rejected", "pending", "failed"}
        assert len({reason for each in expected for reason in each["reasons"]}) >= len(FAULTS)


@pytest.mark.parametrize(
    "grid",
    [
        {"min_sync_c": (2.0, 4.0, 5.6), "min_iqa": (1.0, 2.6, 3.5)},
        {"max_offset": (0, 1, 5), "min_seconds": (3.0, 6.0), "max_static_pct": (10.0, 80.0), "max_faces": (1,)},
    ],
)
def test_every_cell_of_a_grid_counts_what_select_would_keep(grid: dict[str, tuple[float, ...]]) -> None:
    rows = draw_rows(1500, 9)
    with duckdb.connect() as connection:
        connection.register("clips", table(rows))
        found = connection.sql(yield_sql(SelectConfig(), grid)).to_arrow_table().to_pylist()
    assert len(found) == np.prod([len(values) for values in grid.values()])
    for cell, values in zip(found, itertools.product(*grid.values()), strict=True):
        thresholds = dict(zip(grid, values, strict=True))
        assert {name: cell[name] for name in grid} == thresholds
        config = replace(SelectConfig(), **thresholds)  # type: ignore[arg-type]
        decided = [(select(config, row)["decision"], round(1000 * row["duration"])) for row in rows]
        for state, name in (("kept", ""), ("pending", "pending_")):
            lengths = [length for decision, length in decided if decision == state]
            assert (cell[f"{name}clips"], cell[f"{name}ms"]) == (len(lengths), sum(lengths)), thresholds
    assert len({cell["clips"] for cell in found}) > 3
