"""Every reason for a missing value has its word, and the columns are those that queries know."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa

from common.query import METRICS_SCHEMA
from eval.records import CLIP_METRICS, METRICS, NO_WEIGHTS, Record, Seen, clip_records

ROW = {"method": "adapter", "clip_id": "c", "seed": None}
QUALITY = {"iqa": np.float64(4.5), "ase": np.float64(3.5), "frames": np.int64(3), "status": np.array("ok")}


def statuses(seen: Seen, ready: set[str]) -> dict[str, str]:
    return {record.metric: record.status for record in clip_records(ROW, seen, ready, "paper")}


def test_a_value_comes_with_what_it_rests_on() -> None:
    records = {r.metric: r for r in clip_records(ROW, Seen({"quality": QUALITY}), {"quality"}, "strict")}
    assert records["iqa"] == Record("adapter", "c", "iqa", 4.5, "ok", 3, "strict", 0)
    assert records["sync_c"] == Record("adapter", "c", "sync_c", None, NO_WEIGHTS, 0, "strict", 0)
    assert set(records) == set(CLIP_METRICS)


def test_no_face_no_weights_and_no_file_are_told_apart() -> None:
    faceless = {"sync": {"status": np.array("no face: seen in 2 frames")}, "quality": QUALITY}
    both = {"sync", "quality"}
    assert statuses(Seen(faceless), both)["sync_d"] == "no face: seen in 2 frames"
    assert statuses(Seen(faceless), {"sync"})["ase"] == NO_WEIGHTS
    assert set(statuses(Seen({}, "not a video"), both).values()) == {"failed: not a video"}


def test_records_fit_the_table_that_queries_read() -> None:
    records = clip_records(ROW, Seen({"quality": QUALITY}), {"quality"}, "paper")
    table = pa.Table.from_pylist([asdict(r) for r in sorted(records)], METRICS_SCHEMA)
    assert table.column_names == list(asdict(records[0])) and table.num_rows == len(CLIP_METRICS)


def test_arrows_point_the_right_way() -> None:
    better = {name: metric.better for name, metric in METRICS.items()}
    assert {name for name, way in better.items() if way < 0} == {"fid", "kid", "fvd", "kvd", "sync_d"}
    assert {name for name, way in better.items() if way == 0} == {"sync_offset"}
