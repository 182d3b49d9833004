"""Parquet files of sorted batches, whose bytes depend on the rows alone."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.runs import atomic_write


def write_ordered(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, group_rows: int) -> None:
    """Write batches to a Parquet file as they come, in row groups of `group_rows` whatever the batches; equal rows give
    equal bytes. Memory holds one group and one batch. Raises DiskFullError, and what the batches raise, which leaves
    the old file."""
    waiting: list[pa.RecordBatch] = []
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= group_rows:
                table = pa.Table.from_batches(waiting, schema)
                whole = len(table) // group_rows * group_rows
                for begin in range(0, whole, group_rows):
                    writer.write_table(table[begin : begin + group_rows].combine_chunks())
                waiting = table[whole:].to_batches()
        writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks())
