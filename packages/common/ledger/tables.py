"""Out-of-core tables: DuckDB with bounded memory, spilling beside its input files, read in batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from common.runs import FormatVersionError

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "768MB"  # of DuckDB itself; the rest spills to disk
BATCH_ROWS = 65_536


@contextmanager
def connection_beside(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory DuckDB that spills into `folder` instead of the current one when it exceeds its memory limit."""
    import duckdb  # workers import this module but never query

    config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": MEMORY_LIMIT}
    with duckdb.connect(config=config | {"temp_directory": str(folder / ".spill")}) as connection:
        yield connection


def batches(relation: "duckdb.DuckDBPyRelation", schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a query in order, in batches of at most `BATCH_ROWS`, cast to `schema`."""
    for batch in relation.to_arrow_reader(BATCH_ROWS):
        yield batch if schema is None else batch.cast(schema)


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
