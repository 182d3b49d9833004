"""Ledger and clip table of half a million rows: what is asked of them against pandas over the same Parquet files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import CLIP_SCHEMA
from common.ledger.store import STATES, Ledger, key_table
from common.queries import QUERIES
from common.query import connect, materialise
from tests.benchmarks.measure import Row, compare

ROWS = 500_000
MADE = {
    "clip_id": "md5('c' || i)[:16]",
    "video_id": "md5('v' || (i // 10))[:11]",
    "sync_c": "hash(i) % 8000 / 1000",
    "iqa_1to5": "1 + hash(i + 1) % 4000 / 1000",
    "duration": "3 + hash(i + 2) % 17",
    "decision": "['kept', 'rejected', 'rejected', 'failed'][1 + (hash(i + 3) % 4)::INT]",
    "caption": "'a person speaks to the camera, number ' || i",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with clips.parquet, its copy, and the merged ledger of one stage."""
    root = tmp_path_factory.mktemp("run")
    kinds = {"string": "VARCHAR", "double": "DOUBLE", "int64": "BIGINT"}
    fields = (f"({MADE[f.name]})::{kinds[str(f.type)]} AS {f.name}" for f in CLIP_SCHEMA if f.name in MADE)
    rows = f"""SELECT md5('c' || i)[:16] AS unit, 'sync' AS stage, 'f' AS fingerprint, md5('i' || i)[:16] AS input_hash,
        ['kept', 'rejected', 'rejected', 'failed'][1 + (hash(i) % 4)::INT] AS state, '' AS reason, 3::INT AS attempt,
        '' AS error_class, '' AS message, 'node' AS host, 1.5 AS "seconds", 1.0 AS cpu_seconds, 0.0 AS gpu_seconds,
        300.0 AS peak_mb, '{{"sync_c":' || i || '}}' AS outputs, TIMESTAMP '2026-01-01' AS recorded
        FROM range({ROWS}) t(i) ORDER BY unit"""
    (root / "ledger").mkdir()
    with duckdb.connect() as connection:
        clips = f"SELECT {', '.join(fields)} FROM range({ROWS}) t(i) ORDER BY clip_id"
        for sql, file in ((clips, root / "clips.parquet"), (rows, root / "ledger" / "sync-f.parquet")):
            connection.execute(f"COPY ({sql}) TO '{file}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536)")
    materialise(root)
    return root


@pytest.fixture(scope="module")
def session(run: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The run with its views open, as whoever asks several questions has it; opening takes 20 ms."""
    with connect(run) as connection:
        yield connection


Session = duckdb.DuckDBPyConnection


def test_filter_count_and_sum(report: Callable[[Row], None], run: Path, session: Session) -> None:
    """Hours above two thresholds."""
    sql = "SELECT count(*) AS n, sum(duration) AS s FROM clips WHERE sync_c >= 4 AND iqa_1to5 >= 2.6"

    def ours() -> tuple[int, float]:
        return session.sql(sql).fetchall()[0]

    def peer() -> tuple[int, float]:
        table = pd.read_parquet(run / "clips.parquet", columns=["sync_c", "iqa_1to5", "duration"])
        left = table[(table.sync_c >= 4) & (table.iqa_1to5 >= 2.6)]
        return len(left), left.duration.sum()

    assert ours() == peer()
    report(compare("clips, filter + count + sum of 500 k", "pandas on Parquet", ours, peer, aim=1.0))


def test_best_clips(report: Callable[[Row], None], run: Path, session: Session) -> None:
    """The hundred best kept clips, three of a video at most."""

    def ours() -> list[str]:
        return session.sql(QUERIES["best"].sql).to_arrow_table()["clip_id"].to_pylist()

    def peer() -> list[str]:
        table = pd.read_parquet(run / "clips.parquet", columns=["video_id", "clip_id", "sync_c", "decision"])
        kept = table[table.decision == "kept"].sort_values(["sync_c", "clip_id"], ascending=[False, True])
        return kept.groupby("video_id", sort=False).head(3)["clip_id"].head(100).tolist()

    assert ours() == peer()
    report(compare("clips, best three per video, 100", "pandas on Parquet", ours, peer, aim=0.5))


def test_one_clip(report: Callable[[Row], None], run: Path, session: Session) -> None:
    """All columns of one clip; the peer lets Parquet pass over the row groups without it."""
    wanted = pq.ParquetFile(run / "clips.parquet").read_row_group(1, ["clip_id"])["clip_id"][7].as_py()

    def ours() -> dict[str, object]:
        return session.sql(QUERIES["clip"].sql, params={"id": wanted}).to_arrow_table().to_pylist()[0]

    def peer() -> dict[str, object]:
        return pq.read_table(run / "clips.parquet", filters=[("clip_id", "==", wanted)]).to_pylist()[0]

    assert ours() == peer()
    report(compare("clips, one by its id", "pyarrow on Parquet", ours, peer, aim=1.0))


def test_what_is_to_do(report: Callable[[Row], None], run: Path) -> None:
    """Which of 500 k keys are done with: what every start of a stage asks; the peer merges two data frames."""
    table = pq.read_table(run / "ledger" / "sync-f.parquet", columns=["unit", "input_hash"])
    order = np.random.default_rng(0).permutation(ROWS)
    keys = key_table(zip(*(column.take(pa.array(order)).to_pylist() for column in table.columns), strict=True))
    wanted = keys.to_pandas()

    def ours() -> np.ndarray:
        with Ledger(run / "ledger").open("sync", "f") as log:
            return log.last(keys)[0]

    def peer() -> np.ndarray:
        rows = pd.read_parquet(run / "ledger" / "sync-f.parquet", columns=["unit", "input_hash", "state", "attempt"])
        return wanted.merge(rows, on=["unit", "input_hash"], how="left")["state"].map(STATES.index).to_numpy()

    np.testing.assert_array_equal(ours(), peer())
    # The peer has the state and no more; ours also hands out attempt, error class and crashes of what may be tried
    # again, and reads a ledger of any size within DuckDB's memory limit. No dearer than pandas is enough.
    report(compare("ledger, last word on 500 k units", "pandas merge", ours, peer, aim=1.0))
