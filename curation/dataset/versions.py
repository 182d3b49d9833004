"""Data set versions: content-addressed lists of the kept clips, to publish, compare and rebuild.

A list is `<name>.parquet`, one row per clip, and `<name>.json`, its header. Equal clips under equal rules give the same
name and the same bytes. It holds ids, times and hashes: no captions, scores, names or images.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger
from common.ledger.tables import BATCH_ROWS, NO_EXTENSIONS
from common.parquet import read_table
from common.query import connect
from common.runs import RunFolder, atomic_write, plain, read_json, write_json
from curation.dataset.content import ContentStage

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
HOLDS = "Ids, times, offsets and hashes of clips; no captions, scores, names, pictures or sound."
MS_PER_HOUR = 3_600_000
COMPARED = [name for name in SCHEMA.names if name not in ("clip_id", "taken_down")]


class VersionError(UserError, ValueError):
    """A list cannot be written, or does not match its header."""


@dataclass(frozen=True)
class Difference:
    """Difference between two lists. Clips are identified by clip_id, so a clip with other cuts counts as removed and
    added. `fields` counts changes by field among clips in both, `rules` maps changed settings to (old, new)."""

    added: int
    added_hours: float
    removed: int
    removed_hours: float
    taken_down: int  # among the removed
    changed: int
    changed_hours: float
    fields: dict[str, int]
    rules: dict[str, tuple[Any, Any]]

    def lines(self) -> list[str]:
        """The difference as text."""
        rules = [f"rule {name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in self.rules.items()]
        fields = ", ".join(f"{name} {count}" for name, count in self.fields.items())
        return [
            f"added    {self.added:8d} clips {self.added_hours:10.2f} h",
            f"removed  {self.removed:8d} clips {self.removed_hours:10.2f} h, {self.taken_down} of them withdrawn",
            f"changed  {self.changed:8d} clips {self.changed_hours:10.2f} h" + (f" ({fields})" if fields else ""),
            *rules,
        ]


def freeze(
    run: RunFolder, rules: Any, folder: Path, executor: ExecutorConfig, hash_contents: bool = True
) -> dict[str, Any]:
    """Write the list of the kept clips of a run into `folder`; returns its header.

    `rules` is the recipe's `curation` section (a dataclass or mapping without paths), which is part of the name. The
    clip files are checked against the table and, with `hash_contents`, decoded (about 900 frames of 480p a second).
    Raises FileNotFoundError without a clip table; VersionError when no clip is kept or a file differs from the table.
    """
    contents = _hash_clips(run, executor) if hash_contents else {}
    hashes = {"clip_id": list(contents), "content_sha256": list(contents.values())}
    digests = pa.Table.from_pydict(hashes, pa.schema([("clip_id", pa.string()), ("content_sha256", pa.string())]))
    with connect(run.root) as connection:
        connection.register("contents", digests)
        sql = "SELECT * REPLACE (CASE WHEN crop IS NOT NULL THEN crop_side END AS crop_side) FROM ({}) ORDER BY clip_id"
        table = connection.sql(sql.format(f"SELECT {_columns(connection)} {_FROM}")).to_arrow_table().cast(SCHEMA)
    if not table.num_rows:
        raise VersionError(f"{run.root} has no kept clip to freeze; run the curation job or loosen its thresholds.")
    return _write(folder, table, plain(rules))


_FROM = """FROM clips AS c LEFT JOIN (SELECT DISTINCT ON (video_id) * FROM sources) AS s USING (video_id)
           LEFT JOIN contents USING (clip_id) WHERE c.decision = 'kept'"""


def _columns(connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for the columns of a list; null for columns that the tables of an older run lack."""
    own = {
        "url": ("s", "url"),
        "source_height": ("s", "height"),
        "source_sha256": ("s", "sha256"),
        "crop_side": ("c", "width"),
        "content_sha256": ("contents", "content_sha256"),
    }
    there = {
        alias: {row[0] for row in connection.execute(f"DESCRIBE {view}").fetchall()}
        for alias, view in (("c", "clips"), ("s", "sources"), ("contents", "contents"))
    }
    chosen = []
    for name in SCHEMA.names:
        alias, column = own.get(name, ("c", name))
        chosen.append(f"{alias}.{column} AS {name}" if column in there[alias] else f"NULL AS {name}")
    return ", ".join(chosen)


def _hash_clips(run: RunFolder, executor: ExecutorConfig) -> dict[str, str]:
    """clip_id -> content hash of every kept clip, each file decoded once."""
    with connect(run.root) as connection:
        kept = connection.sql("SELECT clip_id AS unit, sha256 FROM clips WHERE decision = 'kept' ORDER BY clip_id")
        rows = kept.to_arrow_table().to_pylist()
    outcomes = run_stage(ContentStage(run.clips), rows, Ledger(run.ledger), executor)
    bad = [outcome for outcome in outcomes if outcome.state != "kept"]
    if bad:
        raise VersionError(f"{len(bad)} clips cannot be frozen, the first: {bad[0].message}")
    return {outcome.unit: outcome.outputs["content_sha256"] for outcome in outcomes}


def _write(folder: Path, table: pa.Table, rules: Any, published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a list and its header; `published` is the header from before a withdrawal."""
    digest, published = hash_rows(table, rules), published or {}
    alive = table.filter(table["taken_down"].is_null())
    spans = alive.select(["t_start", "t_end"]).to_pydict()
    milliseconds = sum(round(1000 * (end - start)) for start, end in zip(*spans.values(), strict=True))
    header = {
        "format": FORMAT,
        "name": published.get("name", digest[:16]),
        "sha256": published.get("sha256", digest),
        "sha256_now": digest,
        "clips": alive.num_rows,
        "videos": len(alive["video_id"].unique()),
        "hours": milliseconds / MS_PER_HOUR,
        "splits": _counts(alive, "split"),
        "sources": _counts(alive, "source"),
        "taken_down": table.num_rows - alive.num_rows,
        "holds": HOLDS,
        "rules": rules,
    }
    with atomic_write(folder / f"{header['name']}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_json(folder / f"{header['name']}.json", header)
    return header


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    counted = table[column].value_counts().to_pylist()
    return {str(row["values"]): row["counts"] for row in sorted(counted, key=lambda row: str(row["values"]))}


def hash_rows(table: pa.Table, rules: Any) -> str:
    """SHA-256 over the rules and the rows, sorted by clip_id, as canonical JSON lines."""
    digest = hashlib.sha256(_canonical([FORMAT, rules]))
    for batch in table.sort_by("clip_id").to_batches(BATCH_ROWS):
        for row in batch.to_pylist():
            digest.update(_canonical([row[name] for name in SCHEMA.names]))
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def read_version(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Header and rows of a list, given its .parquet or .json, checked against each other.

    Raises FileNotFoundError, and VersionError when the rows do not match the header.
    """
    header = read_json(path.with_suffix(".json"), "format")
    if header["format"] != FORMAT:
        raise VersionError(f"{path} has format {header['format']!r}; this version reads format {FORMAT}.")
    header = read_json(path.with_suffix(".json"), "rules", "sha256_now")
    table = read_table(path.with_suffix(".parquet"), schema=SCHEMA)
    digest = hash_rows(table, header["rules"])
    if digest != header["sha256_now"]:
        expected = header["sha256_now"][:16]
        raise VersionError(f"{path} holds other clips than its header lists ({digest[:16]} instead of {expected}).")
    return header, table


def compare(old: Path, new: Path) -> Difference:
    """Difference from one list to another. Raises the errors of `read_version`."""
    (before, a), (after, b) = read_version(old), read_version(new)
    different = {name: f"a.{name} IS DISTINCT FROM b.{name}" for name in COMPARED}
    counts = ", ".join(f"count(*) FILTER ({text})" for text in different.values())
    changes = f"SELECT {_totals('b.')}, {counts} FROM a JOIN b USING (clip_id) WHERE {' OR '.join(different.values())}"
    with duckdb.connect(config=NO_EXTENSIONS) as connection:
        for name, table in (("a", a), ("b", b)):
            connection.register(name, table.filter(table["taken_down"].is_null()))
        connection.register("withdrawn", b.filter(b["taken_down"].is_valid()))
        added, added_hours = _one(connection, f"SELECT {_totals()} FROM b ANTI JOIN a USING (clip_id)")
        removed, removed_hours = _one(connection, f"SELECT {_totals()} FROM a ANTI JOIN b USING (clip_id)")
        (withdrawn,) = _one(connection, "SELECT count(*) FROM a SEMI JOIN withdrawn USING (clip_id)")
        changed, hours, *fields = _one(connection, changes)
    fields_changed = {name: count for name, count in zip(COMPARED, fields, strict=True) if count}
    rules = {name: (was, now) for name, was, now in _changes(before["rules"], after["rules"])}
    return Difference(added, added_hours, removed, removed_hours, withdrawn, changed, hours, fields_changed, rules)


def _totals(of: str = "") -> str:
    """SQL for the number of clips and hours of a list."""
    return f"count(*), coalesce(sum(round(1000 * ({of}t_end - {of}t_start))), 0) / {MS_PER_HOUR}"


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    (row,) = connection.execute(sql).fetchall()
    return tuple(row)


def _changes(before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, by dotted name, with old and new value; None where a list lacks one."""
    old, new = dict(_flat(before)), dict(_flat(after))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _flat(rules: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(rules, dict):
        for key, value in rules.items():
            yield from _flat(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, rules


def withdraw(path: Path, video_id: str, tombstone: str) -> int:
    """Replace the rows of a video in a list by tombstones, which hold only clip_id and the text `tombstone`; returns
    their number.

    The list keeps its name; its header records the new hash. Safe to repeat after a kill. Raises FileNotFoundError,
    and VersionError for a list that was modified otherwise.
    """
    header, table = (
        read_json(path.with_suffix(".json"), "rules"),
        read_table(path.with_suffix(".parquet"), schema=SCHEMA),
    )
    rows = table.to_pylist()
    withdrawn = [number for number, row in enumerate(rows) if row["video_id"] == video_id]
    tombstones = [row for row in rows if row["taken_down"] == tombstone]
    if not tombstones:  # otherwise a killed withdrawal may have written only one of the two files
        read_version(path)
    for number in withdrawn:
        rows[number] = {"clip_id": rows[number]["clip_id"], "taken_down": tombstone}
    if withdrawn or tombstones:
        _write(path.parent, pa.Table.from_pylist(rows, SCHEMA), header["rules"], header)
    return len(withdrawn) + len(tombstones)
