"""Tables larger than memory: DuckDB with bounded memory beside the files it works on, read piece by piece."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "768MB"  # of DuckDB's own; what is larger is spilled
BATCH_ROWS = 65_536


@contextmanager
def connection_beside(folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory DuckDB that spills into `folder`, not into the current one, when its memory is used up."""
    import duckdb  # workers know the words of the ledger and never its engine

    config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": MEMORY_LIMIT}
    with duckdb.connect(config=config | {"temp_directory": str(folder / ".spill")}) as connection:
        yield connection


def batches(relation: "duckdb.DuckDBPyRelation", schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a query in order, `BATCH_ROWS` or fewer at a time, with the types of `schema`."""
    for batch in relation.to_arrow_reader(BATCH_ROWS):
        yield batch if schema is None else batch.cast(schema)


def quoted(text: Path | str) -> str:
    """A path or text as a string literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"
