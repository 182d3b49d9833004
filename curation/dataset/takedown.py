"""Takedown: removes a withdrawn video, its clips, rows and files from a run, and refuses it from then on.

What is the video's is found by exact keys (`curation.dataset.holdings`). Only the SHA-256 of its id is kept, in
`takedowns/` of the run and in the ledger.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.clips import CLIP_SCHEMA, write_ordered_clips
from common.constants import VIDEO_SUFFIXES
from common.ledger.forget import forget_units, messages_with
from common.ledger.store import FLOW, Ledger, Outcome, clean
from common.ledger.tables import MEMORY_LIMIT, batches, quoted
from common.query import connect
from common.runs import RunFolder, atomic_write, read_json, write_json
from curation.config import SelectConfig
from curation.dataset.holdings import (
    FOLDER,
    PER_FRAME,
    TORN,
    VERSIONS,
    clip_files,
    count_rows,
    find_holdings,
    flow_keys,
    is_own,
    is_text,
    ledger_keys,
    read_columns,
    require_known,
    run_files,
    source_files,
    tables,
)
from curation.dataset.versions import withdraw
from curation.decide.select import select

Row = dict[str, Any]

TAKEN_DOWN = "taken_down"
TEXTS = frozenset((".json", ".jsonl", ".html", ".csv", ".tsv", ".txt", ".yaml", ".log", ".md"))
# What a command writes again from the tables: deleted when it names the video.
WRITTEN_AGAIN = {"cache/manifest.json"} | {
    f"report/{name}"
    for name in ("index.html", "curation.html", "summary.json", "scores.json", "card.json", "card.md", "plan.json")
    + ("demo_sync.json", "faults.json")
}
FINGERPRINTS = "report/test_fingerprints.jsonl"  # `unit` is a clip_id
FILE_SUFFIXES = (*sorted(VIDEO_SUFFIXES), ".safetensors", ".json", ".png", ".jpg", ".wav", ".npz")


def tombstone(video_id: str) -> str:
    """SHA-256 of the id of a withdrawn video, which is all that is kept of it."""
    return sha256(clean(video_id).encode()).hexdigest()


def part_taken_down(run: RunFolder, rows: Iterable[Row]) -> tuple[Iterator[Row], list[Row]]:
    """The usable source rows, and for each withdrawn one a rejected row without its id, for the records: that list is
    complete when the rows have been taken."""
    marks = {file.stem for file in (run.root / FOLDER).glob("*.json")}
    gone: list[Row] = []

    def usable() -> Iterator[Row]:
        for row in rows:
            if marks and (mark := tombstone(row["unit"])) in marks:
                refused = {"path": None, "decision": "rejected", "reasons": [TAKEN_DOWN]}
                gone.append({"unit": mark, "source": row["source"]} | refused)
            else:
                yield row

    return usable(), gone


def plan(run: RunFolder, video_id: str) -> Row:
    """What a takedown would remove: see `find_holdings`, and `pages`, which name it and which a command writes again.
    `taken_down`: since when, "" if it is not. Changes nothing.

    After a kill it is what was found before anything was removed. Raises InputError when the run knows no such video,
    and for a table that cannot be read.
    """
    journal = run.root / FOLDER / f"{tombstone(video_id)}.json"
    recorded = read_json(journal) if journal.exists() else {}
    if "counts" in recorded:
        return dict(recorded)
    found = find_holdings(run, clean(video_id))
    if not recorded:
        require_known(run, found)
    found["clips"] = sorted({*found["clips"], *recorded.get("clips", ())})  # of a journal of older code
    return found | {"pages": _pages(run, found), "taken_down": recorded.get("taken_down", "")}


def begin(run: RunFolder, video_id: str, entry: Row | None = None) -> Row:
    """Write the `plan` (or `entry`, which is one) down as a journal, so that a killed takedown can be completed. From
    now on the video is refused.

    Raises what `plan` raises.
    """
    entry = entry or plan(run, video_id)
    if not entry["taken_down"] or entry["pages"] or any(entry["counts"].values()):
        entry["taken_down"] = entry["taken_down"] or datetime.now(UTC).isoformat(timespec="seconds")
        write_json(run.root / FOLDER / f"{tombstone(video_id)}.json", entry)
    return entry


def finish(run: RunFolder, video_id: str, report: Row) -> None:
    """Replace the journal of `begin` by the counts of `report`, which names neither the video nor its clips."""
    journal = run.root / FOLDER / f"{tombstone(video_id)}.json"
    recorded = read_json(journal)
    if "counts" in recorded:
        write_json(journal, {"taken_down": recorded["taken_down"], "removed": report})


def forget_clips(config: SelectConfig, run: RunFolder, video_id: str, entry: Row) -> Row:
    """Remove the rows, files and ledger entries of a video from the run; returns counts of what went now.

    Clips that were refused only for showing the same as one of its clips are decided again by `config`. Safe to
    repeat after a kill. Raises DiskFullError, and RuntimeError while a run is active.
    """
    video, clips, mark = clean(video_id), set(entry["clips"]), tombstone(video_id)
    lists = sorted((run.root / VERSIONS).glob("*.json"))
    withdrawn = {file.stem: withdraw(file, video, mark) for file in lists if file.with_suffix(".parquet").exists()}
    counts: Row = {"lists": {name: count for name, count in withdrawn.items() if count}}
    counts["clip_rows"] = _forget_rows(config, run, video)
    counts["table_rows"] = sum(_filter_table(run.root / name, video, clips) for name in entry["tables"])
    _filter_fingerprints(run.root / FINGERPRINTS, clips)
    files = sorted({*entry["files"], *clip_files(run, clips), *source_files(run, video, entry["paths"])})
    # The materialised copy of the clip table, for queries, is outdated now.
    files += [f"cache/{file.name}" for file in run.cache.glob("clips-*.duckdb") if clips]
    counts["files"] = sum(_delete(run.root / name) for name in files)
    for name in {*entry["pages"], *_pages(run, entry)}:
        _delete(run.root / name)
    counts["ledger_rows"] = forget_units(run.ledger, ledger_keys(run, video, clips, files))
    counts["ledger_rows"] += forget_units(run.ledger / FLOW, flow_keys(run, video, clips))
    for file in run.root.rglob(".*"):
        if TORN.fullmatch(file.name):
            file.unlink()
    with Ledger(run.ledger).open("takedown", "0" * 16) as log:
        if all(outcome.unit != mark for _, outcome in log.done()):
            log.append((mark, ""), Outcome(mark, "rejected", TAKEN_DOWN))
        if log.is_open_ended():
            log.compact()
    return counts


def still_named(run: RunFolder, entry: Row) -> list[str]:
    """What still holds the id or a clip id of a video as a whole word: files, relative to the run, and stages whose
    rows of other units name it in a message. Nobody but the user can say what of it is meant."""
    named = [file.relative_to(run.root).as_posix() for file in run_files(run, TEXTS) if _names(file, entry)]
    ids = pa.array([entry["video"], *entry["clips"]], pa.string())
    for file in [*tables(run), run.clips_parquet]:
        if file.parent.name != PER_FRAME and _has_cell(file, ids):
            named.append(file.relative_to(run.root).as_posix())
    pattern = _pattern(entry)
    stages = [stage for stage, text in messages_with(run.ledger, ids.to_pylist()) if pattern.search(text)]
    return named + [f"ledger, messages of stage {stage}" for stage in dict.fromkeys(stages)]


def left_outside(run: RunFolder, entry: Row) -> list[str]:
    """Source files of the video outside the run, which only the user may delete."""
    paths = [Path(path) for path in entry["paths"] if path]
    root = run.root.resolve()
    return [str(path) for path in paths if path.exists() and not path.resolve().is_relative_to(root)]


def _forget_rows(config: SelectConfig, run: RunFolder, video_id: str) -> int:
    if not run.clips_parquet.exists():
        return 0
    own = f"video_id IS NOT DISTINCT FROM {quoted(video_id)}"
    with connect(run.root) as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute(f"CREATE TEMP TABLE gone AS SELECT clip_id FROM clips WHERE {own}")
        ((count,),) = connection.sql("SELECT count(*) FROM gone").fetchall()
        if not count:
            return 0
        groups = f"""SELECT dup_group FROM clips WHERE NOT {own} AND dup_group IS NOT NULL GROUP BY dup_group
                     HAVING count(*) = 1 OR dup_group IN (SELECT clip_id FROM gone)"""
        members = connection.sql(f"SELECT * FROM clips WHERE NOT {own} AND dup_group IN ({groups})").to_arrow_table()
        fields = ("dup_group", "decision", "reasons")
        again = _regrouped(config, members.to_pylist(maps_as_pydicts="strict"))
        schema = pa.schema([CLIP_SCHEMA.field(name) for name in ("clip_id", *fields)])
        connection.register(
            "again", pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in again], schema)
        )
        changed = ", ".join(
            f"CASE WHEN again.clip_id IS NULL THEN clips.{name} ELSE again.{name} END AS {name}" for name in fields
        )
        remaining = f"SELECT clips.* REPLACE ({changed}) FROM clips LEFT JOIN again USING (clip_id) WHERE NOT {own}"
        ordered = connection.sql(f"SELECT {', '.join(CLIP_SCHEMA.names)} FROM ({remaining}) ORDER BY clip_id")
        write_ordered_clips(run.clips_parquet, batches(ordered, CLIP_SCHEMA))
    return int(count)


def _regrouped(config: SelectConfig, rows: Sequence[Row]) -> list[Row]:
    """Rows of the duplicate groups that lost clips, all that remain of them: the first clip becomes the head, and the
    members are decided again (their split stays)."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["video_id"], row["t_start"], row["clip_id"])):
        groups.setdefault(row["dup_group"], []).append(row)
    heads = {name: members[0]["clip_id"] if len(members) > 1 else None for name, members in groups.items()}
    changed = [row | {"dup_group": heads[row["dup_group"]]} for row in rows]
    return [row | fields for row, fields in zip(changed, select(config, changed), strict=True)]


def _filter_table(file: Path, video_id: str, clips: Collection[str]) -> int:
    """Delete the rows of a Parquet file that are the video's; returns the number deleted. A file of per-frame values
    that has no other row goes."""
    count = count_rows(file, video_id, clips)
    if not count:
        return 0
    with pq.ParquetFile(file) as stored:
        table = stored.read()
    remaining = table.filter(pc.invert(is_own(table, video_id, clips)))
    if not remaining.num_rows and file.parent.name == PER_FRAME:
        file.unlink()
    else:
        with atomic_write(file) as temporary:
            pq.write_table(remaining, temporary, compression="zstd")
    return count


def _filter_fingerprints(file: Path, clips: Collection[str]) -> None:
    """Delete the lines of these clips from a file of `write_fingerprints`."""
    lines = []
    if file.exists():
        with file.open(encoding="utf-8") as opened:
            lines = list(opened)
    remaining = [line for line in lines if json.loads(line)["unit"] not in clips]
    if len(remaining) < len(lines):
        with atomic_write(file) as temporary:
            temporary.write_text("".join(remaining), "utf-8")


def _pages(run: RunFolder, entry: Row) -> list[str]:
    return [name for name in sorted(WRITTEN_AGAIN) if _names(run.root / name, entry)]


def _delete(file: Path) -> bool:
    there = file.is_file() or file.is_symlink()
    if there:
        file.unlink()
    return there


def _pattern(entry: Row) -> re.Pattern[str]:
    """The ids of a video and its clips as whole words: alone, or as a file's name with its suffix."""
    ids = "|".join(re.escape(name) for name in sorted({entry["video"], *entry["clips"]}, key=len, reverse=True))
    suffixes = "|".join(map(re.escape, FILE_SUFFIXES))
    return re.compile(rf"(?<![\w.-])({ids})({suffixes})?(?![\w-]|\.\w)")


def _names(file: Path, entry: Row) -> bool:
    pattern = _pattern(entry)
    return any(pattern.search(text) for text in _texts(file))


def _texts(file: Path) -> Iterator[str]:
    """The texts of a file: the strings in JSON, not its numbers; else all of it, as it is and with escapes undone."""
    if not file.is_file():
        return
    text = file.read_text("utf-8", errors="replace")
    if file.suffix in (".json", ".jsonl"):
        try:
            documents = [text] if file.suffix == ".json" else text.splitlines()
            yield from [string for document in documents for string in _strings(json.loads(document))]
            return
        except ValueError:
            pass  # cut off, or not what its suffix says
    yield from dict.fromkeys((text, unescape(text), unquote(text)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(item)


def _has_cell(file: Path, ids: pa.Array) -> bool:
    """Whether a cell of a table is exactly one of the ids."""
    names = [field.name for field in pq.read_schema(file) if is_text(field.type)] if file.exists() else []
    table = read_columns(file, names)
    return table is not None and any(
        pc.any(pc.is_in(column.cast(pa.string()), ids)).as_py() for column in table.columns
    )
