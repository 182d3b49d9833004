"""Removal of samples: the shards that hold one are rewritten, all at once or not at all."""

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.runs import disk_guard, sync, write_json
from common.shards.index import INDEX, NEXT, check_format, finish_removal, merge_parts, read_part, write_part
from common.shards.sample import ShardError
from common.shards.store import TAR_END


def remove_samples(
    folder: Path | str, clip_ids: Collection[str], fingerprint: str = "", files: Mapping[str, Any] | None = None
) -> int:
    """Rewrite the shards that hold one of these clips without it, and the index; returns how many samples went.

    The other samples keep their bytes, order and shard; a shard may be left empty. All parts of the index get
    `fingerprint`, for the writer that goes on here, and `files` (name -> JSON value) are written beside, in the same
    step: killed at any moment, all files are the old ones or, after the next call, the new ones. Raises DiskFullError;
    ShardError for a shard that is missing.
    """
    folder, doomed = Path(folder), set(clip_ids)
    check_format(folder)
    finish_removal(folder)
    for torn in folder.glob("shard-*.tar.partial"):  # may hold such a sample, and any writer would discard it
        torn.unlink()
    tables = {part: read_part(part) for part in sorted(folder.glob("shard-*.parquet"))}
    ids = [clip for table in tables.values() for clip in table["clip_id"].to_pylist()]
    if doomed.isdisjoint(ids):
        return 0
    staged = folder / f"{NEXT}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    with disk_guard(staged):
        for part, table in tables.items():
            if not doomed.isdisjoint(table["clip_id"].to_pylist()):
                table = _copy_shard(part.with_suffix(".tar"), staged, table, doomed)
            write_part(staged / part.name, table, fingerprint)
        if (folder / INDEX).exists():
            merge_parts(staged / INDEX, [staged / part.name for part in tables])
        for name, value in (files or {}).items():
            write_json(staged / name, value)
        for file in (*staged.iterdir(), staged):
            sync(file)
    os.rename(staged, folder / NEXT)
    finish_removal(folder)
    return len(doomed.intersection(ids))


def _copy_shard(tar: Path, target: Path, table: pa.Table, doomed: set[str]) -> pa.Table:
    """Write a shard of the same name into the folder `target` without the doomed samples; returns its part of the
    index."""
    if not tar.exists():
        raise ShardError(f"{tar} is missing but its index is there; write the shards again.")
    rows = [row for row in table.to_pylist() if row["clip_id"] not in doomed]
    with open(tar, "rb") as old, open(target / tar.name, "wb") as new:
        for row in rows:
            if row["offset"] < 0 or row["offset"] + row["size"] > tar.stat().st_size:
                raise ShardError(f"{tar} ends before sample {row['clip_id']} does; run the latents job again.")
            old.seek(row["offset"])
            row["offset"] = new.tell()
            new.write(old.read(row["size"]))
        new.write(TAR_END)
    return pa.Table.from_pylist(rows, table.schema)
