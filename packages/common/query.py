"""SQL over a run folder: DuckDB views of the files there are, results as text, and a database for other clients."""

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from common.clips import CLIP_FIELDS, CLIP_SCHEMA
from common.errors import MissingFileError, UserError
from common.ledger.jsonlines import JsonLines
from common.ledger.store import clean, ledger_files, ledger_sql
from common.ledger.tables import (
    MEMORY_LIMIT,
    NO_EXTENSIONS,
    check_table_format,
    connection_beside,
    is_plain,
    links_folder,
    plain_path,
    quoted,
    sql_path,
)
from common.parquet import check_parquet, name_damaged, read_schema
from common.queries import DESCRIBED_VIEWS, QUERIES, View
from common.runs import atomic_write, fingerprint
from common.shards.index import INDEX_SCHEMA
from common.tracks import TRACK_FIELDS, TRACK_SCHEMA, TRACKS_FILE
from common.untrusted.text import printable

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
DATABASE = "run.duckdb"
_FORBIDDEN = "disabled by configuration"  # DuckDB's words for a file that it may not open
_EXPLAIN = re.compile(r"^\s*EXPLAIN(\s+ANALYZE\b)?(\s*\([^)]*\))?", re.IGNORECASE)
TRIES = 20  # of a question whose files are replaced while it is answered
T = TypeVar("T")
PROBED = """SELECT unit AS video_id, state, reason, message, outputs, fingerprint,
            try_cast(json_extract_string(outputs, '$.duration') AS DOUBLE) AS duration
            FROM outcomes WHERE stage = 'probe'"""


VIEWS = {
    "sources": DESCRIBED_VIEWS["sources"],
    "clips": View("one row per clip (clips.parquet)", {name: meaning for name, _, meaning in CLIP_FIELDS}),
    "tracks": View(
        "one row per face track of a clip, with what every judge says of it (tracks.parquet)",
        {name: meaning for name, _, meaning in TRACK_FIELDS},
    ),
} | DESCRIBED_VIEWS


class QueryError(UserError, ValueError):
    """DuckDB rejected the query."""


def connect(run_root: Path | str) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views of a run, those of `VIEWS`.

    A view whose file does not exist yet is empty with the right columns. Clips are read from `materialise`'s copy as
    long as it is up to date. Raises MissingFileError for an absent run.
    """
    root = _existing(run_root)
    settings = NO_EXTENSIONS | {"memory_limit": MEMORY_LIMIT, "temp_directory": plain_path(root / "cache" / "duckdb")}
    connection = duckdb.connect(config=settings)
    _create_views(connection, root, _attach_copy(connection, root))
    return connection


def write_database(run_root: Path | str) -> Path:
    """Write RUN/run.duckdb, a database of the same views for any DuckDB client; returns its path.

    The views name the run's files by absolute path and read them when they are queried, so the file stays small; a
    stage that ran later is seen after writing it again. Where DuckDB would read the path as a pattern (`run [v2]`), the
    file holds the tables themselves. Raises MissingFileError, DiskFullError.
    """
    root = _existing(run_root)
    target = root / DATABASE
    with atomic_write(target) as temporary:
        temporary.unlink(missing_ok=True)  # what a killed command was writing is no database
        if is_plain(temporary):
            _write_views(root.resolve(), temporary, "VIEW")
        else:
            with tempfile.TemporaryDirectory(prefix="omniavatar-") as folder:
                _write_views(root.resolve(), Path(folder, DATABASE), "TABLE")
                shutil.copyfile(Path(folder, DATABASE), temporary)
    return target


def _write_views(root: Path, database: Path, kind: str) -> None:
    with duckdb.connect(database, config=NO_EXTENSIONS) as connection:
        _create_views(connection, root, False)
        for name, view in VIEWS.items():
            if kind == "TABLE":
                _copy_view(connection, name)
            connection.execute(f"COMMENT ON {kind} {name} IS {quoted(view.meaning)}")
            present = {column for column, *_ in connection.sql(f"DESCRIBE {name}").fetchall()}
            for column in present & set(view.columns):
                connection.execute(f"COMMENT ON COLUMN {name}.{column} IS {quoted(view.columns[column])}")


def _copy_view(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    connection.execute(f"CREATE TABLE copied AS FROM {name}; DROP VIEW {name}; ALTER TABLE copied RENAME TO {name}")


def _existing(run_root: Path | str) -> Path:
    root = Path(run_root)
    if not root.is_dir():
        raise MissingFileError(f"There is no run folder at {root}; give the folder that a run has written to.")
    return root


def _create_views(connection: duckdb.DuckDBPyConnection, root: Path, clips_attached: bool) -> None:
    connection.execute(f"CREATE VIEW outcomes AS {ledger_sql(ledger_files(root / 'ledger'))}")
    if not clips_attached:
        _parquet_view(connection, "clips", root / "clips.parquet", CLIP_SCHEMA)
    _parquet_view(connection, "tracks", root / TRACKS_FILE, TRACK_SCHEMA)
    _parquet_view(connection, "shards", root / "shards" / "index.parquet", INDEX_SCHEMA)
    _parquet_view(connection, "metrics", root / "report" / "metrics.parquet", METRICS_SCHEMA)
    _steps_view(connection, sorted((root / "logs").glob("train*.jsonl")))
    if (root / "sources.parquet").exists():
        _parquet_view(connection, "sources", root / "sources.parquet", pa.schema([]))
    else:
        connection.execute(f"CREATE VIEW sources AS {PROBED}")


def ask(run_root: Path | str, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """The answer of `question` to a connection of `connect`, from files of one moment: where a writer has replaced one
    meanwhile, it is asked again. Raises what `question` and `connect` raise."""
    for _ in range(TRIES):
        before = _stamps(Path(run_root))
        try:
            with connect(run_root) as connection:
                answer = question(connection)
        except (duckdb.Error, OSError):
            if _stamps(Path(run_root)) == before:
                raise
        else:
            if _stamps(Path(run_root)) == before:
                return answer
    with connect(run_root) as connection:
        return question(connection)


def _stamps(root: Path) -> list[Any]:
    """What changes when a file behind the views is replaced, added or removed; a line more in a log is no change."""
    stamps: list[Any] = []
    for file in _files_behind(root):
        with suppress(FileNotFoundError):
            status = file.stat()
            content = (status.st_size, status.st_mtime_ns) if file.suffix == ".parquet" else ()
            stamps.append((file, status.st_ino, content))
    return stamps


def run_query(run_root: Path | str, sql: str, values: Mapping[str, Any] | None = None, write: bool = False) -> pa.Table:
    """The result of SQL, or of a query named in `common.queries`; `values` fill in its `$names`.

    SQL only reads, and only files of the run, unless `write` allows any statement and any file. Raises QueryError in
    one line, MissingFileError.
    """
    query = QUERIES.get(sql.strip())
    parameters = (query.values if query else {}) | dict(values or {})

    def question(connection: duckdb.DuckDBPyConnection) -> pa.Table:
        if not write:
            _refuse_writing(sql if query is None else query.sql)
            _only_read_below(connection, Path(run_root))
        result = connection.sql(query.sql if query else sql, params=parameters or None)
        if result is None:
            raise QueryError(f"'{sql}' is not a query; begin with SELECT or FROM.{_hint(sql)}")
        return result.to_arrow_table()

    try:
        if not write:
            return ask(run_root, question)
        with connect(run_root) as connection:  # once, whatever changes meanwhile
            return question(connection)
    except duckdb.Error as error:
        files = [file for file in _files_behind(Path(run_root)) if file.suffix == ".parquet" and file.exists()]
        if found := name_damaged(error, files):
            raise found from error
        foreign = ". Files outside of the run are read with --write only." if _FORBIDDEN in str(error) else ""
        raise QueryError(f"The query failed: {' '.join(str(error).split())}{foreign}{_hint(sql)}") from error


def _refuse_writing(sql: str) -> None:
    """Raises QueryError for a statement that does anything but read, duckdb.Error for one that cannot be parsed."""
    for statement in duckdb.extract_statements(sql):
        kind, text = statement.type, statement.query
        if kind == duckdb.StatementType.EXPLAIN:  # with ANALYZE it runs what it explains
            explained = duckdb.extract_statements(re.sub(_EXPLAIN, "", text, count=1))
            kind = explained[0].type if len(explained) == 1 else kind
        # PIVOT consists of several statements, the first of which finds the columns.
        pivot = kind == duckdb.StatementType.MULTI and not re.search(r"\b(copy|export)\b", text, re.IGNORECASE)
        if kind != duckdb.StatementType.SELECT and not pivot:
            raise QueryError(
                f"'{' '.join(text.split())[:60]}' does more than read ({kind.name}); a query begins with SELECT or "
                "FROM. Give --write to run it all the same."
            )


def _only_read_below(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    allowed = [str(root.absolute()), str(root.resolve())]
    if not is_plain(root):  # then the views read the run's files through links
        allowed.append(links_folder())
    if "\\" in str(root.resolve()):  # which DuckDB takes for a separator when it looks where a link leads
        for name in VIEWS:
            _copy_view(connection, name)
    connection.execute(f"SET allowed_directories = [{', '.join(map(quoted, dict.fromkeys(allowed)))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _files_behind(root: Path) -> list[Path]:
    """The files that the views of a run read, but for logs; some may not exist."""
    tables = ("clips.parquet", TRACKS_FILE, "sources.parquet", "shards/index.parquet", "report/metrics.parquet")
    return [*(root / name for name in tables), *ledger_files(root / "ledger")]


def _hint(sql: str) -> str:
    """For a single word, the names it could have been."""
    if len(sql.split()) > 1:
        return ""
    near = difflib.get_close_matches(sql.strip(), QUERIES, 1)
    return f" Did you mean '{near[0]}'?" if near else f" Named queries: {', '.join(QUERIES)}."


def catalogue_lines() -> list[str]:
    """Every view with its columns and their meaning, then every named query."""
    lines = []
    for name, view in VIEWS.items():
        longest = max(map(len, view.columns))
        lines += [f"{name}: {view.meaning}"]
        lines += [f"    {column:<{longest}}  {meaning}" for column, meaning in view.columns.items()] + [""]
    lines.append("Named queries: omniavatar query NAME --run RUN")
    lines += [f"    {name:<10}  {query.meaning}" for name, query in QUERIES.items()]
    return [*lines, "", 'SQL: omniavatar query "select decision, count(*) from clips group by 1" --run RUN']


def table_lines(table: pa.Table, width: int = 160) -> list[str]:
    """A result as text: aligned columns, or where they exceed `width` one field per line and a rule before each row."""
    rows = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in table.column_names}
    if sum(widths.values()) + 2 * len(widths) <= width:
        sides = {field.name: ">" if _is_number(field.type) else "<" for field in table.schema}
        lines = [{name: name for name in widths}, *rows]
        texts = ["  ".join(f"{row[name]:{sides[name]}{size}}" for name, size in widths.items()) for row in lines]
        return [text.rstrip() for text in texts] + ([] if rows else ["(no rows)"])
    longest = max(map(len, table.column_names))
    return [
        line
        for number, row in enumerate(rows, 1)
        for line in (f"-- row {number}", *(f"{name:<{longest}}  {value}".rstrip() for name, value in row.items()))
    ] or ["(no rows)"]


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _text(value: Any) -> str:
    """A value of a result on one line; an interval as h:mm:ss."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, pa.MonthDayNano):
        seconds = value.days * 86400 + value.nanoseconds / 1e9
        whole = int(seconds)
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{int(10 * (seconds - whole) + 0.5) % 10}"
    if isinstance(value, (list, dict)):
        return printable(json.dumps(value, ensure_ascii=False, default=str))
    return printable(" ".join(str(value).split()))


def materialise(run_root: Path | str) -> None:
    """Copy the clip table into DuckDB's own format in the run's cache, where queries are two to ten times faster.

    An old copy is replaced, one that is up to date is left. There is none where DuckDB cannot write beside the table:
    it resolves links, and damages paths with `?` or a backslash. Raises DiskFullError.
    """
    root = Path(run_root)
    copy, table = _copy(root), root / "clips.parquet"
    if copy.exists() or not table.exists() or not is_plain(copy.resolve()):
        return
    with connection_beside(copy.parent) as connection, atomic_write(copy) as temporary:
        temporary.unlink(missing_ok=True)  # what a killed run was writing is no database
        connection.execute(f"ATTACH {sql_path(temporary)} AS copy")
        connection.execute(f"CREATE TABLE copy.clips AS {_whole_rows(connection, table, CLIP_SCHEMA)}")
        connection.execute("DETACH copy")
    for old in copy.parent.glob("clips-*.duckdb"):
        if old != copy:
            old.unlink()


def _copy(root: Path) -> Path:
    """Where the copy of the clip table is, if it is of the table as it is now."""
    table = root / "clips.parquet"
    stamp = (table.stat().st_size, table.stat().st_mtime_ns) if table.exists() else ()
    return root / "cache" / f"clips-{fingerprint([stamp, CLIP_SCHEMA.names])}.duckdb"


def _attach_copy(connection: duckdb.DuckDBPyConnection, root: Path) -> bool:
    copy = _copy(root)
    if copy.exists() and is_plain(copy.resolve()):
        with suppress(duckdb.IOException):  # replaced by another process at this moment
            connection.execute(f"ATTACH {sql_path(copy)} AS copy (READ_ONLY)")
            connection.execute("CREATE VIEW clips AS SELECT * FROM copy.clips")
            return True
    return False


def _parquet_view(connection: duckdb.DuckDBPyConnection, name: str, file: Path, schema: pa.Schema) -> None:
    if file.exists():
        if b"format" in (schema.metadata or {}):
            check_table_format(file, schema)
        check_parquet([file])
        connection.execute(f"CREATE VIEW {name} AS {_whole_rows(connection, file, schema)}")
    else:
        _empty_view(connection, name, schema)


def _steps_view(connection: duckdb.DuckDBPyConnection, files: list[Path]) -> None:
    files = [file for file in files if any("step" in row for row in JsonLines(file).rows())]
    if not files:
        return _empty_view(connection, "steps", STEPS_SCHEMA)
    options = "format = 'newline_delimited', ignore_errors = true, union_by_name = true, filename = 'log'"
    listed = ", ".join(sql_path(file) for file in files)
    log = f"{quoted(clean(f'{files[0].parent}/'))} || parse_filename(log)"  # what was read may be a link
    # A torn last line is read as a row of NULLs.
    connection.execute(
        f"CREATE VIEW steps AS SELECT * REPLACE ({log} AS log) FROM read_json([{listed}], {options}) "
        "WHERE step IS NOT NULL"
    )


def _empty_view(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
    connection.execute(f"CREATE VIEW {name} AS SELECT {', '.join(_nulls(connection, schema))} WHERE false")


def _whole_rows(connection: duckdb.DuckDBPyConnection, file: Path, schema: pa.Schema) -> str:
    """A query for the rows of a file, with null in columns that were added to its schema after it was written."""
    stored = read_schema(file).names
    added = _nulls(connection, pa.schema([field for field in schema if field.name not in stored]))
    return f"SELECT {', '.join(['*', *added])} FROM read_parquet({sql_path(file)})"


def _nulls(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[str]:
    if not schema.names:
        return []
    connection.register("empty", schema.empty_table())
    types = {column: kind for column, kind, *_ in connection.sql("DESCRIBE empty").fetchall()}
    connection.unregister("empty")
    return [f'NULL::{kind} AS "{column}"' for column, kind in types.items()]
