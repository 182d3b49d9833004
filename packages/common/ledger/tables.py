"""Out-of-core tables: DuckDB with bounded memory, spilling beside its input files, read in batches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from common.runs import FormatVersionError, atomic_write, disk_guard

if TYPE_CHECKING:
    import duckdb

# DuckDB fetches and loads an extension as soon as a query mentions something of it, unless this is off.
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
MEMORY_LIMIT = "768MB"  # of DuckDB itself; the rest spills to disk
BATCH_ROWS = 65_536


@contextmanager
def connection_beside(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory DuckDB that spills into `folder` instead of the current one when it exceeds its memory limit."""
    import duckdb  # workers import this module but never query

    settings = NO_EXTENSIONS | {"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder / ".spill")}
    with duckdb.connect(config=settings) as connection:
        yield connection


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
    unsorted = path.with_name(f".{path.stem}.unsorted{path.suffix}")
    try:
        with disk_guard(unsorted):
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(unsorted, schema, compression="zstd") as writer:
                for piece in pieces:
                    writer.write_batch(piece)
        with (
            connection_beside(path.parent) as connection,
            atomic_write(path) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            ordered = connection.sql(f"FROM read_parquet({quoted(unsorted)}) ORDER BY {order}")
            for group in _row_groups(check(batches(ordered, schema, group_rows)), schema, group_rows):
                writer.write_table(group)
    finally:
        unsorted.unlink(missing_ok=True)


def _row_groups(ordered: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The rows in groups whose size depends on nothing but their number: DuckDB's batches depend on its threads."""
    waiting: list[pa.RecordBatch] = []
    for batch in ordered:
        waiting.append(batch)
        while sum(len(each) for each in waiting) >= rows:
            table = pa.Table.from_batches(waiting)
            yield table[:rows].combine_chunks()
            waiting = table[rows:].to_batches()
    yield pa.Table.from_batches(waiting, schema).combine_chunks()


def check_table_format(file: Path, schema: pa.Schema) -> None:
    """Refuse a table that newer code has written: its format, "<name> <number>" in the metadata, is above that of
    `schema`. A file without one is of format 1. Raises FormatVersionError."""
    newest = int(schema.metadata[b"format"].split()[-1])
    stored = (pq.read_schema(file).metadata or {}).get(b"format", b"1").split()[-1]
    if not stored.isdigit() or not 1 <= int(stored) <= newest:
        raise FormatVersionError(
            f"{file} is stored in format {stored.decode()}, this code reads 1 to {newest}; update omniavatar-stack, or "
            "run the curation job in another run folder."
        )


def quoted(text: Path | str) -> str:
    """A path or text as a string literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"
