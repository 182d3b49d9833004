from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import CLIP_SCHEMA, write_clips
from common.ledger.store import Ledger, Outcome
from common.progress import MetricLog
from common.queries import QUERIES
from common.query import (
    VIEWS,
    QueryError,
    catalogue_lines,
    connect,
    materialise,
    run_query,
    table_lines,
    write_database,
)
from common.shards.index import INDEX_SCHEMA
from common.shards.store import ShardWriter


def test_an_empty_run_has_every_view_with_its_columns(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        names = [name for (name,) in connection.sql("SHOW TABLES").fetchall() if name != "empty"]
        assert names == sorted(VIEWS)
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


def scored(count: int) -> list[dict[str, object]]:
    """Clips with scores on a grid, ten of a video, every third kept."""
    return [
        {
            "clip_id": f"c{n:05}", "video_id": f"v{n // 10}", "sync_c": (n * 7 % 97) / 12,
            "iqa_1to5": 1 + (n % 41) / 10, "ase_1to5": 3.0, "duration": 3.0 + n % 5, "source": "hdtf", "split": "train",
            "decision": "rejected" if n % 3 else "kept", "reasons": [["low_sync", "static"][: n % 3], []][n % 3 == 0],
        }
        for n in range(count)
    ]  # fmt: skip


def test_every_named_question_is_answered_on_an_empty_run_too(tmp_path: Path) -> None:
    assert all(run_query(tmp_path, name).num_rows == 0 for name in QUERIES)
    fill(tmp_path)
    assert all(run_query(tmp_path, name).num_columns for name in QUERIES)


def test_named_questions_equal_counting_by_hand(tmp_path: Path) -> None:
    clips = scored(2000)
    write_clips(tmp_path / "clips.parquet", clips)
    assert run_query(tmp_path, "reasons").to_pylist() == [
        {"decision": "rejected", "reason": "low_sync", "clips": 1333},
        {"decision": "rejected", "reason": "static", "clips": 666},
    ]
    assert run_query(tmp_path, "hours")["clips"].to_pylist() == [667]
    best = run_query(tmp_path, "best").to_pylist()
    kept = sorted((c for c in clips if c["decision"] == "kept"), key=lambda c: (-c["sync_c"], c["clip_id"]))
    wanted = [c for c in kept if [k for k in kept if k["video_id"] == c["video_id"]].index(c) < 3][:100]
    assert [row["clip_id"] for row in best] == [c["clip_id"] for c in wanted]
    scores = run_query(tmp_path, "scores").to_pylist()
    counted = {name: sum(row["clips"] for row in scores if row["score"] == name) for name in ("sync_c", "iqa_1to5")}
    assert counted == {"sync_c": 2000, "iqa_1to5": 2000}
    assert run_query(tmp_path, "clip", {"id": "c00007"})["video_id"].to_pylist() == ["v0"]
    fill(tmp_path)
    assert run_query(tmp_path, "unit", {"id": "v2"})["message"].to_pylist() == ["truncated"]
    assert run_query(tmp_path, "states")["units"].to_pylist() == [1, 1]
    assert run_query(tmp_path, "funnel").to_pylist() == [{"stage": "probe", "units": 2, "kept": 1, "kept_pct": 50.0}]
    assert run_query(tmp_path, "failures")["class"].to_pylist() == ["MediaError"]


def test_a_copy_answers_only_for_the_table_it_was_made_of(tmp_path: Path) -> None:
    materialise(tmp_path)  # nothing to copy yet
    write_clips(tmp_path / "clips.parquet", scored(50))
    plain = {name: run_query(tmp_path, name) for name in QUERIES}
    materialise(tmp_path)
    (copy,) = (tmp_path / "cache").glob("*.duckdb")
    with connect(tmp_path) as connection:
        views = "SELECT sql FROM duckdb_views() WHERE view_name = 'clips'"
        assert "copy" in connection.sql(views).fetchall()[0][0]
    assert {name: run_query(tmp_path, name) for name in QUERIES} == plain
    assert (
        run_query(tmp_path, "FROM clips").to_pylist()
        == run_query(tmp_path, f"FROM '{tmp_path}/clips.parquet'").to_pylist()
    )
    write_clips(tmp_path / "clips.parquet", scored(60))
    assert run_query(tmp_path, "SELECT count(*) AS n FROM clips")["n"].to_pylist() == [60]
    materialise(tmp_path)
    assert not copy.exists() and len(list((tmp_path / "cache").glob("*.duckdb"))) == 1
    assert run_query(tmp_path, "SELECT count(*) AS n FROM clips")["n"].to_pylist() == [60]


@pytest.mark.parametrize("copied", [False, True])
def test_a_column_added_after_a_table_was_written_is_null(tmp_path: Path, copied: bool) -> None:
    write_clips(tmp_path / "clips.parquet", scored(3))
    table = pq.read_table(tmp_path / "clips.parquet")
    pq.write_table(table.drop_columns(["digital_source_type", "run_id"]), tmp_path / "clips.parquet")
    if copied:
        materialise(tmp_path)
    counted = run_query(
        tmp_path, "SELECT count(*) AS n FROM clips WHERE digital_source_type IS NULL AND run_id IS NULL"
    )
    assert counted["n"][0].as_py() == 3
    assert sorted(run_query(tmp_path, "FROM clips").column_names) == sorted(CLIP_SCHEMA.names)


def test_views_are_described_with_every_column_they_have(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        for name, view in VIEWS.items():
            columns = {column for column, *_ in connection.sql(f"DESCRIBE {name}").fetchall()}
            if name != "sources":  # which is the ledger's probe stage before there is a sources.parquet
                assert columns <= set(view.columns), name
    text = "\n".join(catalogue_lines())
    assert "clips: one row per clip" in text and "SyncNet confidence" in text and "states " in text


@pytest.mark.parametrize(("word", "hint"), [("state", "mean 'states'"), ("x", "Named queries: states, failures")])
def test_an_unknown_word_is_answered_with_the_named_queries(tmp_path: Path, word: str, hint: str) -> None:
    with pytest.raises(QueryError, match=hint):
        run_query(tmp_path, word)


def test_a_narrow_result_is_a_table_and_a_wide_one_a_field_per_line() -> None:
    narrow = pa.table({"stage": ["probe", "cut"], "units": [3, 12], "note": [None, "a\nb"]})
    assert table_lines(narrow) == ["stage  units  note", "probe      3  NULL", "cut       12  a b"]
    assert table_lines(narrow[:0]) == ["stage  units  note", "(no rows)"]
    wide = pa.table({"id": ["x" * 100], "score": [1 / 3], "reasons": [["a", "b"]]})
    assert table_lines(wide, 80) == ["-- row 1", f"id       {'x' * 100}", "score    0.333333", 'reasons  ["a", "b"]']


def test_times_are_printed_as_hours_minutes_and_seconds(tmp_path: Path) -> None:
    result = run_query(tmp_path, "SELECT to_seconds(4321.5) AS long, to_seconds(7.2) AS short")
    assert table_lines(result)[1].split() == ["1:12:01.5", "0:00:07.2"]


def test_a_database_file_answers_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    fill(run)
    monkeypatch.chdir(tmp_path)
    database = write_database("run").resolve()
    monkeypatch.chdir("/")
    with duckdb.connect(database, read_only=True) as connection:
        assert connection.sql("SELECT clip_id FROM clips ORDER BY sync_c").fetchall() == [("c2",), ("c1",)]
        assert connection.sql("SELECT count(*) FROM outcomes").fetchall() == [(2,)]
        assert connection.sql("SELECT count(*) FROM steps").fetchall() == [(2,)]
        comments = "SELECT comment FROM duckdb_columns() WHERE table_name = 'clips' AND column_name = 'sync_c'"
        assert connection.sql(comments).fetchall() == [("SyncNet confidence",)]
    assert sorted(path.name for path in write_database(tmp_path / "run").parent.glob("*.duckdb*")) == ["run.duckdb"]


@pytest.fixture(scope="module")
def run_beside_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled run and a file that is none of its own."""
    folder = tmp_path_factory.mktemp("beside")
    fill(folder / "run")
    (folder / "secret.csv").write_text("name,word\nroot,hunter2\n")
    return folder


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{run}/clips.parquet'",
        "copy clips to '{out}/all.csv'",
        "/* look */ EXPORT DATABASE '{out}/all'",
        "EXPLAIN ANALYZE COPY clips TO '{out}/all.csv'",
        "explain (analyze, format json) copy clips to '{run}/all.csv'",
        "EXPLAIN /* a comment */ ANALYZE COPY clips TO '{run}/all.csv'",
        "SELECT 1; COPY clips TO '{run}/all.csv'",
        "COPY (PIVOT clips ON decision USING count(*)) TO '{run}/all.csv'",
        "ATTACH '{out}/other.db'",
        "ATTACH '{run}/other.db'; CREATE TABLE other.t AS FROM clips",
        "CREATE TABLE own AS FROM clips",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration; SET lock_configuration = false",
        "PRAGMA profiling_output='{out}/profile.json'",
        "CALL enable_logging(storage := 'file')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{run}/../secret.csv')",
        "FROM '{secret}'",
        "FROM read_csv('{secret}')",
        "SELECT * FROM glob('{out}/*')",
        "FROM query('FROM read_text(''{secret}'')')",
        "FROM 'https://example.invalid/a.parquet'",
        "FROM 's3://bucket/a.parquet'",
    ],
)
def test_a_query_only_reads_and_only_the_run(run_beside_secret: Path, sql: str) -> None:
    out, run, secret = run_beside_secret, run_beside_secret / "run", run_beside_secret / "secret.csv"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(QueryError) as caught:
        run_query(run, sql.format(run=run, out=out, secret=secret))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("link", [False, True])
def test_all_that_reads_the_run_is_allowed(tmp_path: Path, link: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "it's a run")
    if link:
        (tmp_path / "linked").symlink_to(tmp_path / "it's a run")
    monkeypatch.chdir(tmp_path)
    run = Path("linked" if link else "it's a run")
    name = run.as_posix().replace("'", "''")
    for sql in (
        f"FROM '{name}/clips.parquet'",
        f"SELECT * FROM read_parquet('{tmp_path.as_posix()}/{name}/clips.parquet')",
        "DESCRIBE clips",
        "SUMMARIZE clips",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM clips",
        "EXPLAIN ANALYZE FROM clips",
        "PIVOT clips ON decision USING count(*) GROUP BY video_id",
        "WITH few AS (FROM clips LIMIT 1) FROM few",
        "VALUES (1)",
    ):
        assert run_query(run, sql).num_columns > 0


def test_a_large_query_may_still_use_the_disk(tmp_path: Path) -> None:
    """Memory that runs out goes into the run's cache, whatever else is closed."""
    fill(tmp_path)
    sql = "SELECT count(*) AS n FROM (SELECT current_setting('temp_directory') AS t) WHERE t LIKE '%/cache/duckdb'"
    assert run_query(tmp_path, sql)["n"][0].as_py() == 1


def test_write_allows_all_of_it(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "clips.csv"
    fill(run)
    assert run_query(run, f"COPY (SELECT clip_id FROM clips) TO '{out}'", write=True)[0][0].as_py() == 2
    assert run_query(run, f"FROM '{out}'", write=True).num_rows == 2
    run_query(run, f"ATTACH '{tmp_path}/own.db'; CREATE TABLE own.t AS FROM clips", write=True)
    assert (tmp_path / "own.db").exists()
    with pytest.raises(QueryError, match="httpfs"):  # not fetched unasked, even so
        run_query(run, "FROM 'https://example.invalid/a.parquet'", write=True)


def test_no_connection_fetches_extensions(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        sql = "SELECT value FROM duckdb_settings() WHERE name LIKE 'auto%known_extensions'"
        assert connection.sql(sql).fetchall() == [("false",), ("false",)]


@pytest.mark.parametrize("name", ["seed=0/run [v2]", "* [a] {b,c}/x?[d]", 'it\'s "q" 100% #1; $x \\ back\nline ü [[]'])
def test_a_run_is_read_by_its_name_and_never_by_a_pattern(tmp_path: Path, name: str) -> None:
    fill(tmp_path / name)
    for decoy in ("run v", "run 2"):
        (tmp_path / decoy).mkdir()
        write_clips(tmp_path / decoy / "clips.parquet", [{"clip_id": f"other{n}"} for n in range(5)])
    sql = "SELECT (FROM clips SELECT count(*)) AS c, (FROM outcomes SELECT count(*)) AS o, count(*) AS s FROM steps"
    assert run_query(tmp_path / name, sql).to_pylist() == [{"c": 2, "o": 2, "s": 2}]
    assert run_query(tmp_path / name, "FROM clips").column_names == CLIP_SCHEMA.names
    (log,) = run_query(tmp_path / name, "SELECT DISTINCT log FROM steps")["log"].to_pylist()
    assert log == str(tmp_path / name / "logs" / "train.jsonl")
    materialise(tmp_path / name)
    assert run_query(tmp_path / name, "SELECT clip_id FROM clips ORDER BY 1")["clip_id"].to_pylist() == ["c1", "c2"]
    database = write_database(tmp_path / name).rename(tmp_path / "any.duckdb")
    with duckdb.connect(database, read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM clips").fetchall() == [(2,)]


def test_a_result_sends_the_terminal_no_commands() -> None:
    assert "\x1b" not in "".join(table_lines(pa.table({"a": ["\x1b[31mred"]})))
