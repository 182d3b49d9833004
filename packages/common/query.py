"""Ask a run folder with SQL: DuckDB views over whatever of it exists already."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from common.clips import CLIP_SCHEMA
from common.errors import MissingFileError, UserError
from common.ledger.jsonlines import JsonLines
from common.ledger.store import ledger_files, ledger_sql
from common.ledger.tables import connection_beside, quoted
from common.queries import QUERIES
from common.runs import atomic_write, fingerprint
from common.shards.index import INDEX_SCHEMA

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


class QueryError(UserError, ValueError):
    """DuckDB refused the question."""


def connect(run_root: Path | str) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views sources, clips, outcomes, shards, steps and metrics of a run.

    A view whose file is not there yet is empty with the right columns. Clips are read from `materialise`'s copy as long
    as it is up to date. Errors: FileNotFoundError for an absent run.
    """
    root = Path(run_root)
    if not root.is_dir():
        raise MissingFileError(f"There is no run folder at {root}; give the folder that a run has written to.")
    connection = duckdb.connect(config={"temp_directory": str(root / "cache" / "duckdb")})
    connection.execute(f"CREATE VIEW outcomes AS {ledger_sql(ledger_files(root / 'ledger'))}")
    if not _attach_copy(connection, root):
        _parquet_view(connection, "clips", root / "clips.parquet", CLIP_SCHEMA)
    _parquet_view(connection, "shards", root / "shards" / "index.parquet", INDEX_SCHEMA)
    _parquet_view(connection, "metrics", root / "report" / "metrics.parquet", METRICS_SCHEMA)
    _steps_view(connection, sorted((root / "logs").glob("train*.jsonl")))
    if (root / "sources.parquet").exists():
        _parquet_view(connection, "sources", root / "sources.parquet", pa.schema([]))
    else:
        connection.execute(f"CREATE VIEW sources AS {PROBED}")
    return connection


def run_query(run_root: Path | str, sql: str, values: Mapping[str, Any] | None = None) -> pa.Table:
    """The answer to one question about a run: SQL, or the name of one in `common.queries`.

    `values` fill in its `$names`. Errors: QueryError in one line; FileNotFoundError.
    """
    query = QUERIES.get(sql.strip())
    given = (query.values if query else {}) | dict(values or {})
    with connect(run_root) as connection:
        try:
            answer = connection.sql(query.sql if query else sql, params=given or None)
        except duckdb.Error as error:
            raise QueryError(f"The query cannot be answered: {' '.join(str(error).split())}") from error
        if answer is None:
            names = ", ".join(QUERIES)
            raise QueryError(f"'{sql}' asks nothing; begin with SELECT, or give a name of these: {names}.")
        return answer.to_arrow_table()


def materialise(run_root: Path | str) -> None:
    """Copy the clip table into DuckDB's own format in the run's cache, where questions are answered two to ten times
    faster; an old copy is replaced, one that is up to date is left. Errors: DiskFullError."""
    root = Path(run_root)
    copy, table = _copy(root), root / "clips.parquet"
    if copy.exists() or not table.exists():
        return
    with connection_beside(copy.parent) as connection, atomic_write(copy) as temporary:
        temporary.unlink(missing_ok=True)  # what a killed run was writing is no database
        connection.execute(f"ATTACH {quoted(temporary)} AS copy")
        connection.execute(f"CREATE TABLE copy.clips AS SELECT * FROM read_parquet({quoted(table)})")
        connection.execute("DETACH copy")
    for old in copy.parent.glob("clips-*.duckdb"):
        if old != copy:
            old.unlink()


def _copy(root: Path) -> Path:
    """Where the copy of the clip table is, if it is of the table as it is now."""
    table = root / "clips.parquet"
    stamp = (table.stat().st_size, table.stat().st_mtime_ns) if table.exists() else ()
    return root / "cache" / f"clips-{fingerprint(stamp)}.duckdb"


def _attach_copy(connection: duckdb.DuckDBPyConnection, root: Path) -> bool:
    copy = _copy(root)
    if copy.exists():
        with suppress(duckdb.IOException):  # replaced by another process at this moment
            connection.execute(f"ATTACH {quoted(copy)} AS copy (READ_ONLY)")
            connection.execute("CREATE VIEW clips AS SELECT * FROM copy.clips")
            return True
    return False


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
