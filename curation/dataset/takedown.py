"""Takedown: removes a withdrawn video, its clips, rows and files from a run, and refuses it from then on.

Only the SHA-256 of its id is kept, in `takedowns/` of the run and in the ledger.
"""

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.clips import read_clips, write_clips
from common.errors import InputError
from common.ledger.forget import forget_units, named_by
from common.ledger.store import Ledger, Outcome
from common.parquet import read_table
from common.runs import RunFolder, atomic_write, read_json, write_json
from curation.config import SelectConfig
from curation.dataset.versions import withdraw
from curation.decide.select import select
from curation.reporting.summary import SOURCES_FILE

logger = logging.getLogger(__name__)
Row = dict[str, Any]

TAKEN_DOWN = "taken_down"
FOLDER, VERSIONS = "takedowns", "versions"
OWN = ("ledger", "shards", FOLDER, VERSIONS)  # each has its own removal code
# Temporary files of killed writers (`common.runs.atomic_write`, `common.clips.write_clips`).
TORN = re.compile(r"\..+\.(tmp|unsorted)(\.\w+)?")
TEXTS = frozenset((".json", ".jsonl", ".html", ".csv", ".tsv", ".txt", ".yaml", ".log", ".md"))


def tombstone(video_id: str) -> str:
    """SHA-256 of the id of a withdrawn video, which is all that is kept of it."""
    return hashlib.sha256(video_id.encode()).hexdigest()


def part_taken_down(run: RunFolder, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The usable source rows, and for each withdrawn one a rejected row without its id, for the records."""
    gone = {file.stem for file in (run.root / FOLDER).glob("*.json")}
    marked = [(tombstone(row["unit"]), row) for row in rows] if gone else [("", row) for row in rows]
    refused = [
        {"unit": mark, "source": row["source"], "path": None, "decision": "rejected", "reasons": [TAKEN_DOWN]}
        for mark, row in marked
        if mark in gone
    ]
    return [row for mark, row in marked if mark not in gone], refused


def begin(run: RunFolder, video_id: str) -> Row:
    """Write a journal of what is to be removed, so that a killed takedown can be completed: `clips` (ids) and `named`
    (texts in the ledger that may be file names). From now on the video is refused.

    Raises ValueError when the run has no trace of the video.
    """
    journal = run.root / FOLDER / f"{tombstone(video_id)}.json"
    recorded = read_json(journal) if journal.exists() else {}
    if "clips" in recorded:
        return dict(recorded)
    rows = read_clips(run.clips_parquet) if run.clips_parquet.exists() else []
    clips = sorted(row["clip_id"] for row in rows if row["video_id"] == video_id)
    paths = [row["path"] for row in _source_rows(run) if row["video_id"] == video_id]
    named = named_by(run.ledger, {video_id, *clips})
    if not (clips or paths or named or recorded):
        raise InputError(f"{run.root} knows no video '{video_id}'; expected a video_id of its sources.parquet.")
    since = recorded.get("taken_down", datetime.now(UTC).isoformat(timespec="seconds"))
    entry = {"video": video_id, "clips": clips, "named": named, "paths": paths, "taken_down": since}
    write_json(journal, entry)
    return entry


def finish(run: RunFolder, video_id: str, report: Row) -> None:
    """Replace the journal of `begin` by the counts of `report`, which names neither the video nor its clips."""
    mark = tombstone(video_id)
    since = read_json(run.root / FOLDER / f"{mark}.json")["taken_down"]
    write_json(run.root / FOLDER / f"{mark}.json", {"taken_down": since, "removed": report})


def forget_clips(config: SelectConfig, run: RunFolder, video_id: str, entry: Row) -> Row:
    """Remove the rows, files and ledger entries of a video from the run; returns counts.

    Clips that were refused only for showing the same as one of its clips are decided again by `config`. Safe to
    repeat after a kill. Raises DiskFullError, and RuntimeError while a run is active.
    """
    ids = {video_id, *entry["clips"]}
    counts = {"lists": _withdraw_lists(run, video_id), "clip_rows": _forget_rows(config, run, video_id)}
    counts["table_rows"] = sum(_filter_table(file, ids) for file in _files(run, {".parquet"}))
    counts["files"] = _delete_files(run, video_id, entry)
    counts["ledger_rows"] = forget_units(run.ledger, ids)
    for file in run.root.rglob(".*"):
        if TORN.fullmatch(file.name):
            file.unlink()
    with Ledger(run.ledger).open("takedown", "0" * 16) as log:
        if all(outcome.unit != tombstone(video_id) for _, outcome in log.done()):
            log.append((tombstone(video_id), ""), Outcome(tombstone(video_id), "rejected", TAKEN_DOWN))
            log.compact()
    return counts


def still_named(run: RunFolder, entry: Row) -> list[str]:
    """Files of the run that still hold the id or a clip id of a video as text, relative to the run; those that a
    command regenerates (report, cache) are deleted instead."""
    ids = [re.escape(name) for name in (entry["video"], *entry["clips"])]
    pattern = re.compile(rf"(?<![A-Za-z0-9_.-])({'|'.join(ids)})(?![A-Za-z0-9_-])")
    named = []
    for file in _files(run, TEXTS):
        if not pattern.search(file.read_text("utf-8", errors="replace")):
            continue
        relative = file.relative_to(run.root)
        if relative.parts[0] in ("report", "cache"):
            file.unlink()
        else:
            named.append(relative.as_posix())
    return named


def left_outside(run: RunFolder, entry: Row) -> list[str]:
    """Source files of the video outside the run, which only the user may delete."""
    paths = [Path(path) for path in entry["paths"] if path]
    return [str(path) for path in paths if path.exists() and not path.is_relative_to(run.root)]


def _source_rows(run: RunFolder) -> list[Row]:
    file = run.root / SOURCES_FILE
    return read_table(file, columns=["video_id", "path"]).to_pylist() if file.exists() else []


def _forget_rows(config: SelectConfig, run: RunFolder, video_id: str) -> int:
    if not run.clips_parquet.exists():
        return 0
    rows = read_clips(run.clips_parquet)
    remaining = [row for row in rows if row["video_id"] != video_id]
    gone = {row["clip_id"] for row in rows if row["video_id"] == video_id}
    if gone:
        write_clips(run.clips_parquet, _regrouped(config, remaining, gone))
    return len(gone)


def _regrouped(config: SelectConfig, rows: Sequence[Row], gone: Collection[str]) -> list[Row]:
    """The rows after a removal: in duplicate groups that lost clips the first remaining clip becomes the head, and the
    members are decided again (their split stays)."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["video_id"], row["t_start"])):
        if row.get("dup_group"):
            groups.setdefault(row["dup_group"], []).append(row)
    heads = {
        name: members[0]["clip_id"] if len(members) > 1 else None
        for name, members in groups.items()
        if name in gone or len(members) == 1
    }
    changed = [row | {"dup_group": heads[row["dup_group"]]} for row in rows if row.get("dup_group") in heads]
    decided = {
        row["clip_id"]: row | fields | {"split": row["split"]}
        for row, fields in zip(changed, select(config, changed), strict=True)
    }
    return [decided.get(row["clip_id"], row) for row in rows]


def _filter_table(file: Path, ids: Collection[str]) -> int:
    """Delete the rows of a Parquet file whose clip_id or video_id is one of these; returns the number deleted."""
    table = read_table(file)
    removed = [
        pc.is_in(table[name], pa.array(sorted(ids))) for name in ("clip_id", "video_id") if name in table.schema.names
    ]
    if not removed:
        return 0
    gone = removed[0] if len(removed) == 1 else pc.or_kleene(*removed)
    remaining = table.filter(pc.invert(pc.fill_null(gone, False)))
    if remaining.num_rows < table.num_rows:
        with atomic_write(file) as temporary:
            pq.write_table(remaining, temporary, compression="zstd")
    return table.num_rows - remaining.num_rows


def _delete_files(run: RunFolder, video_id: str, entry: Row) -> int:
    """Delete the files named after the video or its clips, and cache files that its ledger rows name."""
    named = {Path(text).name for text in entry["named"] if Path(text).suffix}
    stem = Path(video_id).with_suffix("").name
    removed = []
    for file in _files(run):
        inside = file.relative_to(run.root)
        own = inside.as_posix().endswith(f"/{video_id}") or (
            inside.parts[0] in ("cache", "sources") and file.name.split(".")[0] in (stem, video_id)
        )
        if (
            own
            or file.name.startswith(tuple(entry["clips"]))
            or (inside.parts[0] in ("cache", "per_frame") and file.name in named)
        ):
            removed.append(file)
    # The materialised copy of the clip table, for queries, is outdated now.
    removed += [file for file in run.cache.glob("clips-*.duckdb") if file not in removed]
    for file in removed:
        file.unlink()
    return len(removed)


def _withdraw_lists(run: RunFolder, video_id: str) -> dict[str, int]:
    """Name -> number of tombstones, of the run's frozen lists that hold the video."""
    lists = sorted((run.root / VERSIONS).glob("*.json"))
    return {file.stem: count for file in lists if (count := withdraw(file, video_id, tombstone(video_id)))}


def _files(run: RunFolder, suffixes: Collection[str] = ()) -> Iterator[Path]:
    """The files of the run except those in OWN folders, sorted by name."""
    for file in sorted(run.root.rglob("*")):
        matches = file.is_file() and (not suffixes or file.suffix in suffixes)
        if matches and file.relative_to(run.root).parts[0] not in OWN:
            yield file
