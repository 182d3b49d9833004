"""Every missing value has a status, and the columns are those of the query schema."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from common.query import METRICS_SCHEMA
from eval.features.records import NOT_NAMED, SET_METRICS, Features, Record, UnscorableError


def test_no_value_no_audio_and_no_file_have_different_reasons() -> None:
    seen = Features({"sync": {"status": np.array("no face: seen in 2 frames")}, "quality": {"status": np.array("ok")}})
    assert [seen.status(name) for name in ("sync", "quality", "lips")] == ["no face: seen in 2 frames", "ok", NOT_NAMED]
    assert Features({}, "not a video").status("sync") == "failed: not a video"
    assert set(seen.of("quality")) == {"status"}
    with pytest.raises(UnscorableError, match="seen in 2 frames"):
        seen.of("sync")


def test_records_fit_the_table_that_queries_read() -> None:
    records = [Record("adapter", clip, "iqa", None, "ok", 3, "strict", 0) for clip in "ba"]
    table = pa.Table.from_pylist([asdict(r) for r in sorted(records)], METRICS_SCHEMA)
    assert table.column_names == list(asdict(records[0])) and table["clip_id"].to_pylist() == ["a", "b"]


def test_every_distance_is_better_when_it_is_smaller() -> None:
    assert {metric.better for metric in SET_METRICS.values()} == {-1}
    assert {name for name, metric in SET_METRICS.items() if metric.only} == {"fvd_slow", "kvd_slow"}
