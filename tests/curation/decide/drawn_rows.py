"""Clip rows at random, many values on or beside a threshold."""

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from common.clips import CLIP_SCHEMA
from curation.decide.split import HeldOut, split_sql

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
    "caption": ("One speaks.",), "digital_source_type": ("trainedAlgorithmicMedia",),
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


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, CLIP_SCHEMA)


def splits_of(held: HeldOut, rows: list[dict[str, Any]]) -> dict[str, str]:
    """clip_id -> split that a list gives the rows of a clip table."""
    with duckdb.connect() as connection:
        connection.register("clips", table(rows))
        return dict(connection.sql(f"SELECT clip_id, {split_sql(connection, held, 'clips')} FROM clips").fetchall())
