"""Clip table from judged clips: duplicates, overlaps with a test set, decision and split, over Parquet parts that need
not fit into memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import CLIP_SCHEMA, write_ordered_clips
from common.ledger.tables import connection_beside, sql_path
from common.parquet import check_parquet
from common.runs import atomic_write
from curation.config import CurationConfig, SelectConfig
from curation.decide.duplicates import find_overlaps, group_duplicates
from curation.decide.fingerprints import FINGERPRINT, write_fingerprints
from curation.decide.select import decided_sql
from curation.decide.split import HeldOut, read_split, split_sql

if TYPE_CHECKING:
    import duckdb

Row = Mapping[str, Any]
TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()

# Fields of the clip table that no stage fills in.
NOT_JUDGED = ("dup_group", "test_overlap", "split", "run_id", "stage_versions")
# Fields of `curation.rows.ClipRow` beside those of the clip table: of a clip file, to find copies by; of its source, to
# cut it again; of its faces, for the track table.
BESIDE = [
    *[("cut_sha256", TEXT), ("hashes", pa.list_(TEXT)), ("loudness", pa.list_(pa.int32()))],
    *[("path", TEXT), ("size", pa.list_(INT)), ("tracks_file", TEXT), ("x", REAL), ("y", REAL), ("point_at", REAL)],
    *[("speaking_pct", pa.list_(REAL)), ("lips", pa.list_(pa.list_(REAL))), ("sync_scores", pa.list_(pa.list_(REAL)))],
]
JUDGED_SCHEMA = pa.schema([(field.name, field.type) for field in CLIP_SCHEMA if field.name not in NOT_JUDGED] + BESIDE)
"""A clip as the stages leave it; its unit is the clip_id. `decision` and `reasons` are null, or those of the stage that
stopped it; what a stage does not fill in is null."""
PART_ROWS = 8192  # in Python or between DuckDB and the file at once
SORT_MEMORY = "512MB"  # of DuckDB for the sorted table: its rows in Arrow and in the file's row group come on top


def write_part(path: Path, rows: Iterable[Row]) -> None:
    """Write clip rows as the stages leave them as a part for `write_clip_table`. Raises DiskFullError."""
    remaining = ({name: row.get(name) for name in JUDGED_SCHEMA.names} for row in rows)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, JUDGED_SCHEMA, compression="zstd") as writer:
        while piece := list(islice(remaining, PART_ROWS)):
            writer.write_table(pa.Table.from_pylist(piece, JUDGED_SCHEMA))


def write_clip_table(
    config: CurationConfig,
    parts: Sequence[Path],
    target: Path,
    *,
    run_id: str,
    stage_versions: Mapping[str, str],
    references: Sequence[Row] = (),
) -> None:
    """Write the clip table of judged clips, each in one of the `parts` (Parquet, JUDGED_SCHEMA), sorted by clip_id: the
    same bytes whatever the order and the number of parts.

    `references` are the fingerprints of clips to keep out (`read_fingerprints`). Memory holds 56 bytes a clip while
    copies are searched for and what `common.ledger.tables.MEMORY_LIMIT` allows DuckDB; the rest spills beside the
    table. Raises the errors of `read_split`, DamagedFileError for a part, ClipError for a clip that is in two,
    DiskFullError.
    """
    held = read_split(Path(config.test_list)) if config.test_list else None
    with _judged(parts, target.parent) as connection:
        connection.execute("CREATE VIEW cut AS FROM judged WHERE cut_sha256 IS NOT NULL AND decision IS NULL")
        copies = group_duplicates(config.duplicates, connection, "cut")
        kept_out = find_overlaps(config.duplicates, connection, "cut", references)
    with _judged(parts, target.parent) as connection:  # a new one: the other holds on to its memory
        connection.register("copies", copies)
        connection.register("kept_out", kept_out)
        connection.execute(
            "CREATE VIEW compared AS FROM judged LEFT JOIN copies USING (clip_id) LEFT JOIN kept_out USING (clip_id)"
        )
        of_the_run = {"run_id": run_id, "stage_versions": sorted(stage_versions.items())}
        write_decided(config.select, held, connection, "compared", target, of_the_run)


def write_decided(
    config: SelectConfig,
    held: HeldOut | None,
    connection: "duckdb.DuckDBPyConnection",
    table: str,
    target: Path,
    fields: Mapping[str, Any],
) -> None:
    """Write the clip table `target` from the rows of `table`, decided anew by `config`, with the split of `held` if
    there is one; `fields` are the same in all rows and not in `table`."""
    decided = ("clip_id", "video_id", "duration", "decision", "reasons", "split")
    carried = [name for name in CLIP_SCHEMA.names if name not in (*decided, *fields)]
    sql = decided_sql(config, table, carry=carried)
    split = split_sql(connection, held, table) if held else "split"
    connection.execute(f"SET memory_limit = '{SORT_MEMORY}'")
    ordered = connection.sql(f"SELECT * REPLACE ({split} AS split) FROM ({sql}) ORDER BY clip_id")
    constants = {name: pa.array([value], CLIP_SCHEMA.field(name).type) for name, value in fields.items()}

    def whole(batch: pa.RecordBatch) -> pa.RecordBatch:
        same = pa.array(np.zeros(len(batch), np.int64))
        columns = [constants[name].take(same) if name in constants else batch[name] for name in CLIP_SCHEMA.names]
        return pa.RecordBatch.from_arrays(
            [column.cast(kind) for column, kind in zip(columns, CLIP_SCHEMA.types, strict=True)], schema=CLIP_SCHEMA
        )

    write_ordered_clips(target, map(whole, ordered.to_arrow_reader(PART_ROWS)))


def stream_cut(parts: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of the clips that were cut, and `unit`, by video and start. Raises DamagedFileError."""
    sql = f"SELECT clip_id AS unit, {', '.join(columns)} FROM judged WHERE cut_sha256 IS NOT NULL"
    with _judged(parts, parts[0].parent if parts else Path()) as connection:
        for batch in connection.sql(f"{sql} ORDER BY video_id, t_start, clip_id").to_arrow_reader(PART_ROWS):
            yield from batch.to_pylist()


def cut_ids(parts: Sequence[Path]) -> pa.Array:
    """The ids of the clips that were cut, 20 bytes a clip."""
    with _judged(parts, parts[0].parent if parts else Path()) as connection:
        ids = connection.sql("SELECT clip_id FROM judged WHERE cut_sha256 IS NOT NULL").to_arrow_table()["clip_id"]
    return pa.chunked_array(ids, pa.string()).combine_chunks()


def write_test_fingerprints(parts: Sequence[Path], clips: Path, target: Path) -> None:
    """Write the fingerprints of the kept test clips of the clip table `clips`, sorted by clip, for `keep_out` of
    another run. Raises DamagedFileError, DiskFullError."""
    fields = ", ".join("clip_id AS unit" if name == "unit" else name for name in FINGERPRINT)
    tests = f"SELECT clip_id FROM read_parquet({sql_path(clips)}) WHERE split = 'test' AND decision = 'kept'"
    with _judged(parts, clips.parent) as connection:
        rows = connection.sql(f"SELECT {fields} FROM judged SEMI JOIN ({tests}) USING (clip_id) ORDER BY unit")
        batches = rows.to_arrow_reader(PART_ROWS)
        write_fingerprints(target, (row for batch in batches for row in batch.to_pylist()))


@contextmanager
def _judged(parts: Sequence[Path], folder: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A DuckDB that spills into `folder`, with the rows of all parts as the view `judged`."""
    check_parquet(parts, JUDGED_SCHEMA.names)
    with connection_beside(folder) as connection:
        if parts:
            files = ", ".join(map(sql_path, parts))
            names = ", ".join(JUDGED_SCHEMA.names)
            connection.execute(f"CREATE VIEW judged AS SELECT {names} FROM read_parquet([{files}])")
        else:
            connection.register("judged", JUDGED_SCHEMA.empty_table())
        yield connection
