"""Parquet files of a run, opened in one place: a damaged one ends in a sentence that names it and what to do."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DamagedFileError, damaged


@contextmanager
def reading_parquet(path: Path | str) -> Iterator[None]:
    """Raise DamagedFileError for whatever pyarrow says of the content of `path`; errors of the disk pass through."""
    try:
        yield
    except pa.ArrowException as error:
        # "... Either the file is corrupted or this is not a parquet file": the first sentence says it.
        raise damaged(path, str(error).split(". ")[0]) from error
    except OSError as error:
        if Path(path).is_dir():
            raise damaged(path, "expected a file", "is a folder") from error
        if error.errno is not None:  # pyarrow gives none to what it cannot decode
            raise
        raise damaged(path, error) from error


def read_schema(path: Path | str) -> pa.Schema:
    """The schema of a file, from its last bytes. Raises FileNotFoundError, DamagedFileError."""
    with reading_parquet(path):
        return pq.read_schema(path)


def read_table(
    path: Path | str,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    filters: Any = None,
) -> pa.Table:
    """The rows of a file; all columns, those named, or those of `schema`.

    Raises FileNotFoundError; DamagedFileError also for a file without one of the columns.
    """
    _check_columns(path, columns or (schema.names if schema is not None else ()))
    with reading_parquet(path):
        # No partitioning: a folder called a=b is not a column.
        names = list(columns) if columns else None
        return pq.read_table(path, columns=names, schema=schema, filters=filters, partitioning=None)


def read_batches(path: Path | str, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file in batches of at most `rows`; of the columns named, those it has.

    Raises FileNotFoundError, DamagedFileError.
    """
    with reading_parquet(path), pq.ParquetFile(path) as file:
        yield from file.iter_batches(rows, columns=list(columns) if columns else None)


def check_parquet(files: Iterable[Path], columns: Sequence[str] = ()) -> None:
    """Read the last bytes of files that DuckDB is about to read. Raises FileNotFoundError, DamagedFileError."""
    for file in files:
        _check_columns(file, columns)


def name_damaged(error: Exception, files: Iterable[Path]) -> DamagedFileError | None:
    """The sentence for an error of DuckDB: of the file that it names or else of the first of `files` that cannot be
    read whole; None when all of them can."""
    import duckdb  # whoever calls this has imported it

    if isinstance(error, (duckdb.PermissionException, duckdb.InterruptException, duckdb.OutOfMemoryException)):
        return None
    if named := re.search(r"""['"]([^'"]+\.(?:parquet|jsonl))['"]""", str(error)):
        return damaged(named[1], error)
    for file in files:
        try:
            for _ in read_batches(file, 4096):
                pass
        except DamagedFileError as found:
            return found
    return None


def _check_columns(path: Path | str, columns: Sequence[str]) -> None:
    names = set(read_schema(path).names)
    if missing := [name for name in columns if name not in names]:
        raise damaged(path, f"it has no column '{missing[0]}'")
