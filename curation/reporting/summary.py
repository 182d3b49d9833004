"""Curation results: the table of sources, and a summary of counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import CLIP_SCHEMA
from common.errors import MissingFileError
from common.ledger.tables import batches, check_table_format, connection_beside, sql_path, write_ordered
from common.parquet import check_parquet
from common.progress import duration_text
from common.runs import RunFolder, atomic_write
from curation.decide.select import SCORED_BY

JUDGED = ("speech", "face", "text", "shot")  # what a clip row names the judge of

# What a judge would do that no required one has done.
WOULD_ADD = {
    "sync_scorer": "refuses lips and audio that disagree and moves audio that is merely off (SyncNet)",
    "quality_scorer": "refuses poor pictures (Q-Align)",
    "captioner": "describes what is seen",
}

Row = Mapping[str, Any]

SOURCES_FILE = "sources.parquet"
GROUP_ROWS = 1 << 20  # of the file's row groups
MS_PER_HOUR = 3_600_000
SOURCES_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("row_index", pa.int64()),
        ("state", pa.string()),  # kept, rejected or failed
        ("reason", pa.string()),
        ("message", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("duration", pa.float64()),  # seconds
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("codec", pa.string()),
        ("audio_codec", pa.string()),
        ("audio_rate", pa.int64()),
        ("video_start", pa.float64()),  # seconds
        ("audio_start", pa.float64()),  # seconds
        ("variable_frame_rate", pa.bool_()),
        ("max_frame_gap", pa.float64()),  # seconds
        ("clips", pa.int64()),
        ("clips_kept", pa.int64()),
    ]
)
COUNTED = ("clips", "clips_kept")  # from the clip table
LISTED_SCHEMA = pa.schema([("position", pa.int64()), *(field for field in SOURCES_SCHEMA if field.name not in COUNTED)])
"""A source as the stages leave it, `position` its place in the list."""
PART_ROWS = 8192  # converted from Python at once


@dataclass(frozen=True)
class CurationSummary:
    """Counts of sources and clips by state. `refused_sources` and `refused` count reasons (a clip may have several),
    `pending_roles` the clips that wait for the weights of a role, `unjudged` the kept ones that no model of it has
    judged; `judges` names what looked at speech, faces, text and shots; `hours_kept` is the length of those kept."""

    sources: int
    refused_sources: dict[str, int]
    clips: int
    kept: int
    rejected: int
    failed: int
    pending: int
    refused: dict[str, int]
    pending_roles: dict[str, int]
    hours_kept: float
    unjudged: dict[str, int] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The summary as text."""
        refused = ", ".join(f"{reason} {count}" for reason, count in self.refused.items()) or "none"
        bad = ", ".join(f"{reason} {count}" for reason, count in self.refused_sources.items()) or "none"
        states = f"{self.kept} kept, {self.rejected} rejected, {self.pending} pending, {self.failed} failed"
        needs = [
            f"{count} clips wait for weights: set models.{role} and run the same command again."
            for role, count in self.pending_roles.items()
        ]
        needs += [
            f"{count} kept clips were not judged by a {role}, which {WOULD_ADD[role]}: set models.{role} and run again."
            for role, count in self.unjudged.items()
        ]
        return [
            f"{self.sources} sources (refused: {bad})",
            f"{self.clips} clips: {states} (refused: {refused})",
            f"{duration_text(3600 * self.hours_kept)} kept",
            *([f"judged by {', '.join(f'{by} ({what})' for what, by in self.judges.items())}"] if self.judges else []),
            *needs,
        ]


def write_source_part(path: Path, rows: Iterable[tuple[int, Row]]) -> None:
    """Write sources as the stages leave them, each with its place in the list, as a part for `write_sources`. Raises
    DiskFullError."""
    remaining = (
        {name: row.get(name) for name in LISTED_SCHEMA.names}
        | {"position": position, "video_id": row["unit"], "state": row.get("decision", "kept")}
        | {"reason": (row.get("reasons") or [""])[0]}
        for position, row in rows
    )
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, LISTED_SCHEMA, compression="zstd") as writer:
        while piece := list(islice(remaining, PART_ROWS)):
            writer.write_table(pa.Table.from_pylist(piece, LISTED_SCHEMA))


def write_sources(run: RunFolder, parts: Sequence[Path]) -> None:
    """Write sources.parquet from parts of `write_source_part` and the run's clip table: one row per listed source in
    the order of the list, rejected ones with their reason. Raises DamagedFileError for a part, DiskFullError."""
    check_parquet(parts, LISTED_SCHEMA.names)
    with connection_beside(run.root) as connection:
        rows = connection.sql(
            f"""WITH counted AS (
                    SELECT video_id, count(*) AS clips, count(*) FILTER (decision = 'kept') AS clips_kept
                    FROM read_parquet({sql_path(run.clips_parquet)}) GROUP BY video_id)
                SELECT listed.* EXCLUDE position, coalesce(clips, 0) AS clips, coalesce(clips_kept, 0) AS clips_kept
                FROM read_parquet([{", ".join(map(sql_path, parts))}]) AS listed LEFT JOIN counted USING (video_id)
                ORDER BY position"""
        )
        write_ordered(run.root / SOURCES_FILE, batches(rows, SOURCES_SCHEMA), SOURCES_SCHEMA, GROUP_ROWS)


def summarise(run: RunFolder) -> CurationSummary:
    """Count what clips.parquet and sources.parquet of a run hold. Raises FileNotFoundError when they are not there."""
    if not run.clips_parquet.exists():
        raise MissingFileError(f"{run.clips_parquet} does not exist; run the curation job, which writes it.")
    check_table_format(run.clips_parquet, CLIP_SCHEMA)
    check_parquet([run.root / SOURCES_FILE], SOURCES_SCHEMA.names)
    clips, sources = (f"read_parquet({sql_path(file)})" for file in (run.clips_parquet, run.root / SOURCES_FILE))
    with connection_beside(run.root) as connection:
        of_clips = "decision, count(*), sum(round(duration * 1000))::BIGINT"
        states = {
            state: (count, ms)
            for state, count, ms in connection.sql(f"SELECT {of_clips} FROM {clips} GROUP BY decision").fetchall()
        }
        each = f"SELECT decision, unnest(reasons) AS reason FROM {clips} WHERE decision IN ('rejected', 'pending')"
        reasons = connection.sql(f"SELECT decision, reason, count(*) FROM ({each}) GROUP BY ALL").fetchall()
        lacking = ", ".join(f"count(*) FILTER ({field} IS NULL)" for field in SCORED_BY)
        lacked = connection.sql(f"SELECT {lacking} FROM {clips} WHERE decision = 'kept'").fetchall()[0]
        names = ", ".join(f"list_sort(list(DISTINCT {what}_judge))" for what in JUDGED)
        named = connection.sql(f"SELECT {names} FROM {clips}").fetchall()[0]
        refused = f"SELECT CASE WHEN state <> 'kept' THEN reason END, count(*) FROM {sources} GROUP BY ALL"
        refused_sources = dict(connection.sql(refused).fetchall())
    unjudged = {role: count for role, count in zip(SCORED_BY.values(), lacked, strict=True) if count}
    judges = {
        what: " and ".join(filter(None, found)) for what, found in zip(JUDGED, named, strict=True) if any(found or ())
    }
    counts = {state: states.get(state, (0, 0))[0] for state in ("kept", "rejected", "failed", "pending")}
    return CurationSummary(
        sources=sum(refused_sources.values()),
        refused_sources=_counted({reason: n for reason, n in refused_sources.items() if reason is not None}),
        clips=sum(count for count, _ in states.values()),
        **counts,
        refused=_counted({reason: n for state, reason, n in reasons if state == "rejected"}),
        pending_roles=_counted(
            {reason.removeprefix("needs "): n for state, reason, n in reasons if state == "pending"}
        ),
        unjudged=unjudged,
        judges=judges,
        hours_kept=states.get("kept", (0, 0))[1] / MS_PER_HOUR,
    )


def _counted(counter: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first, equal counts by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
