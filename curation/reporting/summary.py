"""Curation results: the table of sources, and a summary of counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import read_clips
from common.parquet import read_table
from common.progress import duration_text
from common.runs import RunFolder, atomic_write
from curation.decide.select import SCORED_BY

# What a judge would do that no required one has done.
WOULD_ADD = {
    "sync_scorer": "refuses lips and audio that disagree and moves audio that is merely off (SyncNet)",
    "quality_scorer": "refuses poor pictures (Q-Align)",
    "captioner": "describes what is seen",
}

Row = Mapping[str, Any]

SOURCES_FILE = "sources.parquet"
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


def write_sources(run: RunFolder, listed: Sequence[Row], clips: Sequence[Row]) -> None:
    """Write sources.parquet: one row per listed source, rejected ones with their reason. Raises DiskFullError."""
    cut = Counter(clip["video_id"] for clip in clips)
    kept = Counter(clip["video_id"] for clip in clips if clip["decision"] == "kept")
    rows = [
        {name: row.get(name) for name in SOURCES_SCHEMA.names}
        | {"video_id": row["unit"], "state": row.get("decision", "kept"), "reason": (row.get("reasons") or [""])[0]}
        | {"clips": cut[row["unit"]], "clips_kept": kept[row["unit"]]}
        for row in listed
    ]
    with atomic_write(run.root / SOURCES_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SOURCES_SCHEMA), temporary, compression="zstd")


def summarise(run: RunFolder) -> CurationSummary:
    """Count what clips.parquet and sources.parquet of a run hold. Raises FileNotFoundError when they are not there."""
    clips = read_clips(run.clips_parquet)
    sources = read_table(run.root / SOURCES_FILE).to_pylist()
    states = Counter(clip["decision"] for clip in clips)
    reasons = Counter((clip["decision"], reason) for clip in clips for reason in clip["reasons"])
    return CurationSummary(
        sources=len(sources),
        refused_sources=_counted(Counter(row["reason"] for row in sources if row["state"] != "kept")),
        clips=len(clips),
        kept=states["kept"],
        rejected=states["rejected"],
        failed=states["failed"],
        pending=states["pending"],
        refused=_counted(Counter({reason: n for (state, reason), n in reasons.items() if state == "rejected"})),
        pending_roles=_counted(
            Counter({reason.removeprefix("needs "): n for (state, reason), n in reasons.items() if state == "pending"})
        ),
        unjudged={
            role: count
            for field, role in SCORED_BY.items()
            if (count := sum(clip["decision"] == "kept" and clip[field] is None for clip in clips))
        },
        judges={
            what: " and ".join(names)
            for what in ("speech", "face", "text", "shot")
            if (names := sorted({clip[f"{what}_judge"] for clip in clips if clip[f"{what}_judge"]}))
        },
        hours_kept=sum(clip["duration"] for clip in clips if clip["decision"] == "kept") / 3600,
    )


def _counted(counter: Counter) -> dict[str, int]:
    """Most frequent first, equal counts by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
