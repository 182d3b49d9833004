"""Ask a run folder with SQL: DuckDB views over whatever of it exists already."""

from pathlib import Path

import duckdb
import pyarrow as pa

from common.clips import CLIP_SCHEMA
from common.jsonlines import JsonLines
from common.ledger import ledger_files, ledger_sql, quoted
from common.shards import INDEX_SCHEMA

# Columns of the views whose files are not there yet; a present file shows all that it holds.
STEPS_SCHEMA = pa.schema(
    [("step", pa.int64()), ("loss", pa.float64()), ("lr", pa.float64()), ("seconds", pa.float64())]
)
METRICS_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("clip_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("status", pa.string()),
        ("n", pa.int32()),
        ("protocol", pa.string()),
        ("seed", pa.int64()),
    ]
)
PROBED = "SELECT unit AS video_id, state, reason, message, outputs, fingerprint FROM outcomes WHERE stage = 'probe'"


class QueryError(ValueError):
    """DuckDB refused the question."""


def connect(run_root: Path | str) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views sources, clips, outcomes, shards, steps and metrics of a run.

    A view whose file is not there yet is empty with the right columns. Errors: FileNotFoundError for an absent run.
    """
    root = Path(run_root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no run folder at {root}; give the folder that a run has written to.")
    connection = duckdb.connect(config={"temp_directory": str(root / "cache" / "duckdb")})
    connection.execute(f"CREATE VIEW outcomes AS {ledger_sql(ledger_files(root / 'ledger'))}")
    _parquet_view(connection, "clips", root / "clips.parquet", CLIP_SCHEMA)
    _parquet_view(connection, "shards", root / "shards" / "index.parquet", INDEX_SCHEMA)
    _parquet_view(connection, "metrics", root / "report" / "metrics.parquet", METRICS_SCHEMA)
    _steps_view(connection, sorted((root / "logs").glob("train*.jsonl")))
    if (root / "sources.parquet").exists():
        _parquet_view(connection, "sources", root / "sources.parquet", pa.schema([]))
    else:
        connection.execute(f"CREATE VIEW sources AS {PROBED}")
    return connection


def run_query(run_root: Path | str, sql: str) -> pa.Table:
    """The answer to one SQL question about a run. Errors: QueryError in one line; FileNotFoundError."""
    with connect(run_root) as connection:
        try:
            answer = connection.sql(sql)
        except duckdb.Error as error:
            raise QueryError(f"The query cannot be answered: {' '.join(str(error).split())}") from error
        if answer is None:
            raise QueryError(f"'{sql}' asks nothing; begin with SELECT, SHOW TABLES or DESCRIBE <view>.")
        return answer.to_arrow_table()


def _parquet_view(connection: duckdb.DuckDBPyConnection, name: str, file: Path, schema: pa.Schema) -> None:
    if file.exists():
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({quoted(file)})")
    else:
        _empty_view(connection, name, schema)


def _steps_view(connection: duckdb.DuckDBPyConnection, files: list[Path]) -> None:
    files = [file for file in files if any("step" in row for row in JsonLines(file).rows())]
    if not files:
        return _empty_view(connection, "steps", STEPS_SCHEMA)
    options = "format = 'newline_delimited', ignore_errors = true, union_by_name = true, filename = 'log'"
    listed = ", ".join(quoted(file) for file in files)
    # A torn last line is read as a row of NULLs.
    connection.execute(f"CREATE VIEW steps AS SELECT * FROM read_json([{listed}], {options}) WHERE step IS NOT NULL")


def _empty_view(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    connection.register(f"no_{name}", schema.empty_table())
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM no_{name}")
