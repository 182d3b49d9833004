"""Out-of-core tables: DuckDB with bounded memory, spilling beside its input files, read in batches."""

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from common.parquet import check_parquet, name_damaged, read_schema
from common.runs import FormatVersionError, atomic_write, disk_guard, temporary_beside

if TYPE_CHECKING:
    import duckdb

# DuckDB fetches and loads an extension as soon as a query mentions something of it, unless this is off.
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
MEMORY_LIMIT = "768MB"  # of DuckDB itself; the rest spills to disk
BATCH_ROWS = 65_536
PIECE_MEMORY = "256MB"  # of DuckDB for a piece of a table
PIECE_BYTES, GROUP_BYTES = 48 * 2**20, 6 * 2**20  # about so much text has a piece of a table, and a row group of it
# Paths that DuckDB reads as they stand: it takes * ? [ ] for a pattern, \ for a separator, `a=1` for a column.
PLAIN = re.compile(r"[\w /.,:@~+(){}'&!;$%-]*")


@contextmanager
def connection_beside(folder: Path, memory: str = MEMORY_LIMIT) -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory DuckDB that spills into `folder` instead of the current one when it exceeds its memory limit.

    Raises DamagedFileError where a query fails over a Parquet file of `folder` that cannot be read.
    """
    import duckdb  # workers import this module but never query

    settings = NO_EXTENSIONS | {"memory_limit": memory, "temp_directory": plain_path(folder / ".spill")}
    with duckdb.connect(config=settings) as connection:
        try:
            yield connection
        except duckdb.Error as error:
            if found := name_damaged(error, sorted(folder.glob("*.parquet"))):
                raise found from error
            raise


def batches(
    relation: "duckdb.DuckDBPyRelation", schema: pa.Schema | None = None, rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """The rows of a query in order, in batches of at most `rows`, cast to `schema`."""
    for batch in relation.to_arrow_reader(rows):
        yield batch if schema is None else batch.cast(schema)


def write_sorted(
    path: Path,
    pieces: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    order: str,
    group_rows: int,
    check: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]] = lambda ordered: ordered,
) -> None:
    """Write batches of `schema` to a Parquet file, sorted by the columns `order`; equal rows give equal bytes.

    Row groups have `group_rows` rows, whatever the batches; memory holds one group and one batch. `check` sees the
    batches in order on their way into the file and may raise, which leaves the old file. Raises DiskFullError.
    """
    unsorted = temporary_beside(path, "unsorted")
    try:
        with disk_guard(unsorted):
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(unsorted, schema, compression="zstd") as writer:
                for piece in pieces:
                    writer.write_batch(piece)
        with connection_beside(path.parent) as connection:
            ordered = connection.sql(f"FROM read_parquet({sql_path(unsorted)}) ORDER BY {order}")
            write_ordered(path, check(batches(ordered, schema, group_rows)), schema, group_rows)
    finally:
        unsorted.unlink(missing_ok=True)


def write_by_pieces(
    path: Path, query: Callable[[str], str], schema: pa.Schema, order: tuple[str, ...], width: float, small: bool
) -> None:
    """Write the rows of a query, sorted by the columns `order`, to a Parquet file. `width` is about how many bytes a
    row has; `small` says that all of them fit into memory. Raises DiskFullError.

    To sort wide rows DuckDB needs about as much memory as they have bytes. So they are sorted piece by piece, each a
    range of the first column of `order`, of text: `query(where)` gives the rows for which `where` holds, and should
    read no others.
    """
    key = order[0]
    piece, group = (max(256, int(size / max(width, 1.0))) for size in (PIECE_BYTES, GROUP_BYTES))
    group = min(group, BATCH_ROWS)
    with connection_beside(path.parent, PIECE_MEMORY) as connection:
        bounds: list[str] = []
        if not small:
            numbered = f"SELECT {key}, row_number() OVER (ORDER BY {key}) - 1 AS number FROM ({query('true')})"
            firsts = f"SELECT DISTINCT {key} FROM ({numbered}) WHERE number > 0 AND number % {piece} = 0 ORDER BY {key}"
            bounds = [quoted(first) for (first,) in connection.execute(firsts).fetchall()]

        def pieces() -> Iterator[pa.RecordBatch]:
            for low, high in pairwise(["", *bounds, ""]):
                limits = [f"{key} >= {low}"] * bool(low) + [f"{key} < {high}"] * bool(high)
                chosen = f"SELECT * FROM ({query(' AND '.join(limits) or 'true')}) ORDER BY {', '.join(order)}"
                yield from batches(connection.sql(chosen), schema, group)

        write_ordered(path, pieces(), schema, group)


def write_ordered(path: Path, ordered: Iterable[pa.RecordBatch], schema: pa.Schema, group_rows: int) -> None:
    """Write batches to a Parquet file as they come, in row groups of `group_rows` whatever the batches; equal rows give
    equal bytes. Memory holds one group and one batch. Raises DiskFullError, and what the batches raise, which leaves
    the old file."""
    waiting: list[pa.RecordBatch] = []
    # Measurements seldom come twice: looking for that costs a third of the writing, and makes the file larger.
    repeating = [field.name for field in schema if not pa.types.is_floating(field.type)]
    options = {"compression": "zstd", "use_dictionary": repeating}
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for batch in ordered:
            waiting.append(batch)
            if sum(map(len, waiting)) >= group_rows:
                table = pa.Table.from_batches(waiting, schema)
                whole = len(table) // group_rows * group_rows
                for begin in range(0, whole, group_rows):
                    writer.write_table(table[begin : begin + group_rows].combine_chunks())
                waiting = table[whole:].to_batches()
        writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks())


def check_table_format(file: Path, schema: pa.Schema) -> None:
    """Refuse a table that newer code has written: its format, "<name> <number>" in the metadata, is above that of
    `schema`. A file without one is of format 1. Raises FormatVersionError; DamagedFileError for a file that is no
    Parquet, or has not even the first column of `schema`."""
    newest = int(schema.metadata[b"format"].split()[-1])
    check_parquet([file], schema.names[:1])
    stored = ((read_schema(file).metadata or {}).get(b"format", b"1").split() or [b""])[-1]
    if not stored.isdigit() or not 1 <= int(stored) <= newest:
        raise FormatVersionError(
            f"{file} is stored in format {stored.decode()}, this code reads 1 to {newest}; update omniavatar-stack, or "
            "run the curation job in another run folder."
        )


def quoted(text: Path | str) -> str:
    """A path or text as a string literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def sql_path(path: Path | str) -> str:
    """A file as a string literal of SQL that DuckDB reads as this one file, whatever its name."""
    return quoted(plain_path(path))


def is_plain(path: Path | str) -> bool:
    """Whether DuckDB reads a path as it stands."""
    return PLAIN.fullmatch(str(Path(path).absolute())) is not None


def plain_path(path: Path | str) -> str:
    """The path for DuckDB, or one to the same file through a link of this process: patterns cannot be switched off, and
    escapes (`[[]`) fail where two folders of a path have them."""
    path = Path(path).absolute()
    if is_plain(path):
        return str(path)
    target = path.parent if PLAIN.fullmatch(path.name) else path
    link = Path(_links(os.getpid()), hashlib.sha256(os.fsencode(target)).hexdigest()[:16])
    with suppress(FileExistsError):
        link.symlink_to(target)
    return str(link if target == path else link / path.name)


def links_folder() -> str:
    """The folder of the links that `plain_path` makes in this process."""
    return _links(os.getpid())


@cache
def _links(process: int) -> str:
    """A folder for the links of one process, removed at its end."""
    place = None if is_plain(tempfile.gettempdir()) else "/tmp"
    folder = tempfile.mkdtemp(prefix="omniavatar-links-", dir=place)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
