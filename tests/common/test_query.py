from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import CLIP_SCHEMA, write_clips
from common.ledger import Ledger, Outcome
from common.progress import MetricLog
from common.query import QueryError, connect, run_query
from common.shards import INDEX_SCHEMA, ShardWriter

VIEWS = ["clips", "metrics", "outcomes", "shards", "sources", "steps"]


def test_an_empty_run_has_every_view_with_its_columns(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        names = [name for (name,) in connection.sql("SHOW TABLES").fetchall() if not name.startswith("no_")]
        assert names == VIEWS
        assert all(connection.sql(f"SELECT * FROM {view}").fetchall() == [] for view in VIEWS)
    assert run_query(tmp_path, "SELECT * FROM clips").column_names == CLIP_SCHEMA.names
    assert run_query(tmp_path, "SELECT * FROM shards").column_names == INDEX_SCHEMA.names
    assert run_query(tmp_path, "SELECT count(*) AS n FROM clips WHERE list_contains(reasons, 'x')")["n"][0].as_py() == 0


def fill(run: Path) -> None:
    with Ledger(run / "ledger").open("probe", "f") as log:
        log.append(("v1", "i"), Outcome("v1", "kept", outputs={"fps": 25.0}))
        log.compact()
        log.append(("v2", "i"), Outcome("v2", "failed", error_class="MediaError", message="truncated"))
    write_clips(run / "clips.parquet", [{"clip_id": "c1", "sync_c": 4.0}, {"clip_id": "c2", "sync_c": 2.0}])
    with ShardWriter(run / "shards", 2) as writer:
        tensors = {"latents": np.zeros((16, 3, 8, 8), np.float16), "text": np.zeros((5, 4), np.float16)}
        writer.add("c1", tensors, {"video_id": "v1", "split": "train"})
    log = MetricLog(run / "logs" / "train.jsonl")
    log.write(step=1, loss=0.5)
    log.write(step=2, loss=0.25, grad_norm=1.0)
    log.close()
    with open(run / "logs" / "train.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    (run / "logs" / "train_vae.jsonl").write_text("")
    (run / "report").mkdir()
    pq.write_table(pa.table({"metric": ["fid"], "value": [1.5]}), run / "report" / "metrics.parquet")


def test_questions_across_the_run(tmp_path: Path) -> None:
    run = tmp_path / "it's a run"
    fill(run)
    sql = """SELECT s.video_id, c.clip_id, c.sync_c, h.frames FROM sources s JOIN shards h USING (video_id)
             JOIN clips c USING (clip_id) WHERE (s.outputs->>'fps')::DOUBLE = 25"""
    assert run_query(run, sql).to_pylist() == [{"video_id": "v1", "clip_id": "c1", "sync_c": 4.0, "frames": 9}]
    states = run_query(run, "SELECT unit, state, error_class FROM outcomes ORDER BY unit").to_pylist()
    assert [tuple(row.values()) for row in states] == [("v1", "kept", ""), ("v2", "failed", "MediaError")]
    steps = run_query(run, "SELECT step, loss, grad_norm FROM steps ORDER BY step").to_pylist()
    assert [tuple(row.values()) for row in steps] == [(1, 0.5, None), (2, 0.25, 1.0)]
    assert run_query(run, "SELECT value FROM metrics").to_pylist() == [{"value": 1.5}]


def test_sources_file_comes_before_the_ledger(tmp_path: Path) -> None:
    fill(tmp_path)
    pq.write_table(pa.table({"video_id": ["v7"], "url": ["u"]}), tmp_path / "sources.parquet")
    assert run_query(tmp_path, "SELECT url FROM sources").to_pylist() == [{"url": "u"}]


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT * FROM clipz", "SELECT syncc FROM clips", ""])
def test_bad_question_is_one_line(tmp_path: Path, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        run_query(tmp_path, sql)
    assert "\n" not in str(caught.value)


def test_absent_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder at .*nowhere"):
        connect(tmp_path / "nowhere")
