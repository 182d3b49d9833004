"""Scores of a row of a sweep, as its judging would have left them."""

import pyarrow as pa
import pyarrow.parquet as pq

from common.query import METRICS_SCHEMA


def write_scores(places, row, seed, values, fid=10.0):
    """metric -> clip -> value of one row and seed, and one FID."""
    lines = [("adapter", clip, name, value) for name, found in values.items() for clip, value in found.items()]
    lines += [("adapter", "", "fid", fid + seed), ("ground_truth", "c0", "sync_c", 8.0)]
    rows = [dict(zip(METRICS_SCHEMA.names, (*x, "ok", 1, "paper", seed), strict=True)) for x in lines]
    rows.append(rows[0] | {"metric": "hkc", "value": None, "status": "skipped: no weights"})
    path = places.row(row, seed) / "report" / "metrics.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, METRICS_SCHEMA), path)
