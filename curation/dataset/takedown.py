"""A video is withdrawn: its clips, its rows and all files that bear its name leave the run, and it never comes back.

What is remembered is the SHA-256 of its id, in `takedowns/` of the run and in the ledger.
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
from common.runs import RunFolder, atomic_write, read_json, write_json
from curation.config import SelectConfig
from curation.dataset.versions import withdraw
from curation.decide.select import select
from curation.reporting.summary import SOURCES_FILE

logger = logging.getLogger(__name__)
Row = dict[str, Any]

TAKEN_DOWN = "taken_down"
FOLDER, VERSIONS = "takedowns", "versions"
OWN = ("ledger", "shards", FOLDER, VERSIONS)  # each with its own way of forgetting
# What killed writers leave (`common.runs.atomic_write`, `common.clips.write_clips`); nobody reads it again.
TORN = re.compile(r"\..+\.(tmp|unsorted)(\.\w+)?")
TEXTS = frozenset((".json", ".jsonl", ".html", ".csv", ".tsv", ".txt", ".yaml", ".log", ".md"))


def tombstone(video_id: str) -> str:
    """What is left of the id of a video that was withdrawn: its SHA-256."""
    return hashlib.sha256(video_id.encode()).hexdigest()


def part_taken_down(run: RunFolder, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Source rows that may be used, and in place of each withdrawn one a refusal without its id, to be recorded."""
    gone = {file.stem for file in (run.root / FOLDER).glob("*.json")}
    marked = [(tombstone(row["unit"]), row) for row in rows] if gone else [("", row) for row in rows]
    refused = [
        {"unit": mark, "source": row["source"], "path": None, "decision": "rejected", "reasons": [TAKEN_DOWN]}
        for mark, row in marked
        if mark in gone
    ]
    return [row for mark, row in marked if mark not in gone], refused


def begin(run: RunFolder, video_id: str) -> Row:
    """Put down what is to be removed, so that a killed takedown can be completed: `clips` (ids) and `named` (texts in
    the ledger that may be names of files). From now on the video is refused.

    Raises ValueError when the run knows nothing of the video.
    """
    journal = run.root / FOLDER / f"{tombstone(video_id)}.json"
    known = read_json(journal) if journal.exists() else {}
    if "clips" in known:
        return dict(known)
    rows = read_clips(run.clips_parquet) if run.clips_parquet.exists() else []
    clips = sorted(row["clip_id"] for row in rows if row["video_id"] == video_id)
    paths = [row["path"] for row in _source_rows(run) if row["video_id"] == video_id]
    named = named_by(run.ledger, {video_id, *clips})
    if not (clips or paths or named or known):
        raise InputError(f"{run.root} knows no video '{video_id}'; expected a video_id of its sources.parquet.")
    since = known.get("taken_down", datetime.now(UTC).isoformat(timespec="seconds"))
    entry = {"video": video_id, "clips": clips, "named": named, "paths": paths, "taken_down": since}
    write_json(journal, entry)
    return entry


def finish(run: RunFolder, video_id: str, report: Row) -> None:
    """Replace what `begin` put down by the counts of `report`, which names neither the video nor its clips."""
    mark = tombstone(video_id)
    since = read_json(run.root / FOLDER / f"{mark}.json")["taken_down"]
    write_json(run.root / FOLDER / f"{mark}.json", {"taken_down": since, "removed": report})


def forget_clips(config: SelectConfig, run: RunFolder, video_id: str, entry: Row) -> Row:
    """Remove the rows, files and ledger entries of a video from the run; returns counts.

    Clips that were refused only for showing the same as one of its clips are decided anew by `config`. Killed, it can
    be done again. Raises DiskFullError; RuntimeError when a run is at work.
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
    command makes again (of the report, of the cache) are deleted instead."""
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
    """Source files of the video outside the run, which are the user's to delete."""
    paths = [Path(path) for path in entry["paths"] if path]
    return [str(path) for path in paths if path.exists() and not path.is_relative_to(run.root)]


def _source_rows(run: RunFolder) -> list[Row]:
    file = run.root / SOURCES_FILE
    return pq.read_table(file, columns=["video_id", "path"]).to_pylist() if file.exists() else []


def _forget_rows(config: SelectConfig, run: RunFolder, video_id: str) -> int:
    if not run.clips_parquet.exists():
        return 0
    rows = read_clips(run.clips_parquet)
    left = [row for row in rows if row["video_id"] != video_id]
    gone = {row["clip_id"] for row in rows if row["video_id"] == video_id}
    if gone:
        write_clips(run.clips_parquet, _regrouped(config, left, gone))
    return len(gone)


def _regrouped(config: SelectConfig, rows: Sequence[Row], gone: Collection[str]) -> list[Row]:
    """The rows; of duplicate groups that lost clips the first remaining one becomes the head, and its members are
    decided anew (their split stays)."""
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
    """Drop the rows of a Parquet file whose clip_id or video_id is one of these; returns how many went."""
    table = pq.read_table(file)
    doomed = [
        pc.is_in(table[name], pa.array(sorted(ids))) for name in ("clip_id", "video_id") if name in table.schema.names
    ]
    if not doomed:
        return 0
    gone = doomed[0] if len(doomed) == 1 else pc.or_kleene(*doomed)
    left = table.filter(pc.invert(pc.fill_null(gone, False)))
    if left.num_rows < table.num_rows:
        with atomic_write(file) as temporary:
            pq.write_table(left, temporary, compression="zstd")
    return table.num_rows - left.num_rows


def _delete_files(run: RunFolder, video_id: str, entry: Row) -> int:
    """Delete the files called after the video or its clips, and those of the cache that its ledger rows name."""
    named = {Path(text).name for text in entry["named"] if Path(text).suffix}
    stem = Path(video_id).with_suffix("").name
    doomed = []
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
            doomed.append(file)
    # The copy of the clip table that questions are answered from is of the old table.
    doomed += [file for file in run.cache.glob("clips-*.duckdb") if file not in doomed]
    for file in doomed:
        file.unlink()
    return len(doomed)


def _withdraw_lists(run: RunFolder, video_id: str) -> dict[str, int]:
    """Name -> number of tombstones, of the run's frozen lists that hold the video."""
    lists = sorted((run.root / VERSIONS).glob("*.json"))
    return {file.stem: count for file in lists if (count := withdraw(file, video_id, tombstone(video_id)))}


def _files(run: RunFolder, suffixes: Collection[str] = ()) -> Iterator[Path]:
    """The files of the run but for those of OWN, in the order of their names."""
    for file in sorted(run.root.rglob("*")):
        wanted = file.is_file() and (not suffixes or file.suffix in suffixes)
        if wanted and file.relative_to(run.root).parts[0] not in OWN:
            yield file
