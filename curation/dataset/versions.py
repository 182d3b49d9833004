"""Data set versions: content-addressed lists of the kept clips, to publish, compare and rebuild.

A list is `<name>.parquet`, one row per clip, and `<name>.json`, its header. Equal clips under equal rules give the same
name and the same bytes. It holds ids, times and hashes: no captions, scores, names or images.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError
from common.ledger.tables import BATCH_ROWS, batches, connection_beside, sql_path, write_ordered
from common.parquet import check_parquet, read_batches, read_table
from common.runs import read_json, temporary_beside, write_json

FORMAT = 1
FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("clip_id", pa.string()),
    ("video_id", pa.string()),
    ("source", pa.string()),
    ("row_index", pa.int64()),
    ("url", pa.string()),  # null: a local file
    ("t_start", pa.float64()),  # seconds on the video's clock
    ("t_end", pa.float64()),
    ("split", pa.string()),
    ("crop", pa.list_(pa.int64())),  # x, y, width, height in pixels of a source `source_height` high
    ("crop_side", pa.int64()),  # width of the clip when it is cropped, pixels
    ("source_height", pa.int64()),
    ("sync_offset_applied", pa.int64()),  # frames
    ("source_sha256", pa.string()),
    ("sha256", pa.string()),  # of the clip file
    ("content_sha256", pa.string()),  # of its decoded frames and audio, see `curation.dataset.content`
    ("taken_down", pa.string()),  # SHA-256 of the id of the withdrawn video that this row's clip came from
)
SCHEMA = pa.schema(FIELDS)
CONTENTS = pa.schema([("clip_id", pa.string()), ("content_sha256", pa.string())])
GROUP_ROWS = 65_536  # of a list's file
HOLDS = "Ids, times, offsets and hashes of clips; no captions, scores, names, pictures or sound."
MS_PER_HOUR = 3_600_000


class VersionError(UserError, ValueError):
    """A list cannot be written, or does not match its header."""


class _Contents:
    """Hash and counts of the rows of a list, which come sorted by clip_id."""

    def __init__(self, rules: Any) -> None:
        self.digest = hashlib.sha256(_canonical([FORMAT, rules]))
        self.rows = self.clips = self.milliseconds = 0
        self.videos: set[str] = set()
        self.splits, self.sources = Counter[str](), Counter[str]()

    def through(self, rows: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches, counted on their way."""
        for batch in rows:
            for row in batch.to_pylist():
                self.digest.update(_canonical([row[name] for name in SCHEMA.names]))
                self.rows += 1
                if row["taken_down"] is None:
                    self.clips += 1
                    self.milliseconds += round(1000 * (row["t_end"] - row["t_start"]))
                    self.videos.add(row["video_id"])
                    self.splits[str(row["split"])] += 1
                    self.sources[str(row["source"])] += 1
            yield batch


def write_version(
    folder: Path, rows: Iterable[pa.RecordBatch], rules: Any, published: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Write a list of rows sorted by clip_id and its header; without rows nothing, and None. `published` is the header
    from before a withdrawal."""
    listed, contents, published = temporary_beside(folder / "list.parquet"), _Contents(rules), published or {}
    try:
        write_ordered(listed, contents.through(rows), SCHEMA, GROUP_ROWS)
        if not contents.rows:
            return None
        digest = contents.digest.hexdigest()
        header = {
            "format": FORMAT,
            "name": published.get("name", digest[:16]),
            "sha256": published.get("sha256", digest),
            "sha256_now": digest,
            "clips": contents.clips,
            "videos": len(contents.videos),
            "hours": contents.milliseconds / MS_PER_HOUR,
            "splits": dict(sorted(contents.splits.items())),
            "sources": dict(sorted(contents.sources.items())),
            "taken_down": contents.rows - contents.clips,
            "holds": HOLDS,
            "rules": rules,
        }
        listed.replace(folder / f"{header['name']}.parquet")
    finally:
        listed.unlink(missing_ok=True)
    write_json(folder / f"{header['name']}.json", header)
    return header


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def check_version(path: Path) -> dict[str, Any]:
    """Header of a list, given its .parquet or .json, whose rows were found to be what it says.

    Raises FileNotFoundError, and VersionError when the rows do not match the header.
    """
    header = read_json(path.with_suffix(".json"), "format")
    if header["format"] != FORMAT:
        raise VersionError(f"{path} has format {header['format']!r}; this version reads format {FORMAT}.")
    header = read_json(path.with_suffix(".json"), "rules", "sha256_now")
    listed, contents = path.with_suffix(".parquet"), _Contents(header["rules"])
    check_parquet([listed], SCHEMA.names)
    with connection_beside(path.parent) as connection:
        rows = connection.sql(
            f"SELECT {', '.join(SCHEMA.names)} FROM read_parquet({sql_path(listed)}) ORDER BY clip_id"
        )
        for _ in contents.through(batches(rows, SCHEMA)):
            pass
    digest = contents.digest.hexdigest()
    if digest != header["sha256_now"]:
        expected = header["sha256_now"][:16]
        raise VersionError(f"{path} holds other clips than its header lists ({digest[:16]} instead of {expected}).")
    return header


def read_version(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Header and rows of a list, as `check_version`. Raises what that raises."""
    return check_version(path), read_table(path.with_suffix(".parquet"), schema=SCHEMA)


def withdraw(path: Path, video_id: str, tombstone: str) -> int:
    """Replace the rows of a video in a list by tombstones, which hold only clip_id and the text `tombstone`; returns
    their number.

    The list keeps its name; its header records the new hash. Safe to repeat after a kill. Raises FileNotFoundError,
    and VersionError for a list that was modified otherwise.
    """
    header, listed = read_json(path.with_suffix(".json"), "rules"), path.with_suffix(".parquet")
    ids = read_table(listed, ("video_id", "taken_down"))
    withdrawn, tombstones = (
        pc.sum(pc.equal(ids[name], value)).as_py() or 0
        for name, value in (("video_id", video_id), ("taken_down", tombstone))
    )
    if not tombstones:  # otherwise a killed withdrawal may have written only one of the two files
        check_version(path)
    if withdrawn or tombstones:
        write_version(path.parent, _buried(listed, video_id, tombstone), header["rules"], header)
    return withdrawn + tombstones


def _buried(listed: Path, video_id: str, tombstone: str) -> Iterator[pa.RecordBatch]:
    """The rows of a list, of those of the video nothing but the clip_id."""
    for batch in read_batches(listed, BATCH_ROWS, SCHEMA.names):
        own = pc.fill_null(pc.equal(batch["video_id"], video_id), False)
        kept = {name: pc.if_else(own, pa.scalar(None, batch[name].type), batch[name]) for name in SCHEMA.names}
        kept["clip_id"] = batch["clip_id"]
        kept["taken_down"] = pc.if_else(own, tombstone, batch["taken_down"])
        yield pa.RecordBatch.from_arrays(
            [kept[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA
        )
