"""Rebuild of a frozen list: downloads its videos, cuts the same clips and compares them with the list."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.constants import VIDEO_SUFFIXES
from common.executors.config import ExecutorConfig
from common.executors.flow import Flow, Step
from common.executors.flow_run import run_flow
from common.executors.stage import Stage, no_effect
from common.ledger.store import Ledger, Outcome
from common.media.index import probe
from common.media.open import MediaError
from common.runs import RunFolder, sha256_file
from curation.config import DownloadConfig
from curation.dataset.content import hash_content
from curation.dataset.versions import read_version
from curation.download.fetch import fetch_steps
from curation.sources.hdtf import fit_crops
from curation.sources.remote import remote_row
from curation.stages.cut import cut_row
from curation.stages.shots import RULE_VERSION

Row = dict[str, Any]
TOLD = ("crop_side", "sync_offset_applied", "sha256", "content_sha256", "source_sha256")
SAME_BYTES, SAME_CONTENT, CHANGED, GONE, WITHDRAWN = "same_bytes", "same_content", "changed", "gone", "taken_down"


@dataclass(frozen=True)
class Rebuilt:
    """Result per clip of a rebuilt list: `table` with clip_id, video_id, state and why (for a gone clip the class of
    the failure; for a changed one whether its source is another file or the same one encoded differently)."""

    name: str
    table: pa.Table

    def lines(self) -> list[str]:
        """The report for a person."""
        rows = self.table.to_pylist()
        counts = Counter((row["state"], row["why"]) for row in rows)
        lines = [f"list {self.name}: {len(rows)} clips"]
        for (state, why), count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            videos = len({row["video_id"] for row in rows if (row["state"], row["why"]) == (state, why)})
            label = f"{state} ({why})" if why else state
            lines.append(f"{count:8d} clips of {videos} videos: {label.replace('_', ' ')}")
        return lines


def rebuild(
    path: Path, run: RunFolder, executor: ExecutorConfig, download: DownloadConfig | None = None, videos: str = ""
) -> Rebuilt:
    """Recreate the clips of a frozen list in `run.clips`, as `<clip_id>.mp4`, and compare each with the list.

    Videos are taken from the folder `videos`, as `<video_id>` or `<video_id>.<suffix>`; the others are
    fetched as `download` says. Nothing is scored: cuts, crops and audio shifts are the list's. A killed rebuild
    resumes. Raises what `read_version` raises, StageError, DiskFullError.
    """
    header, listed = read_version(path)
    rows = listed.to_pylist()
    alive = [row for row in rows if not row["taken_down"]]
    sources = source_rows(alive, Path(videos) if videos else None)
    folder = Path(download.folder) if download and download.folder else run.cache / "videos"
    reachable = [row for row in sources if row["path"] or (download and row["url"])]
    why = dict.fromkeys({row["unit"] for row in sources} - {row["unit"] for row in reachable}, "not at hand")
    steps = [
        *(fetch_steps(download, folder) if download else ()),
        Step(FitStage(), then=_clips),
        Step(RebuildStage(run.clips)),
    ]
    rebuilt = {}
    for _, row in run_flow(Flow(tuple(steps)), reachable, Ledger(run.ledger), executor, "rebuild").rows():
        if "decision" in row:
            why[row["unit"]] = row["error_class"] or row["reasons"][0]
        else:
            rebuilt[row["unit"]] = row
    return Rebuilt(header["name"], pa.Table.from_pylist([_judge(row, rebuilt, why) for row in rows], REPORT))


REPORT = pa.schema([(name, pa.string()) for name in ("clip_id", "video_id", "state", "why")])


def source_rows(clips: Sequence[Mapping[str, Any]], videos: Path | None = None) -> list[Row]:
    """The videos of a list as rows of sources to fetch (see `curation.sources.remote.remote_row`), each clip a segment;
    those that lie in `videos` have a `path` instead of a `url`."""
    rows: dict[str, Row] = {}
    for clip in clips:
        name = clip["video_id"]
        row = rows.setdefault(name, remote_row(name, clip["url"] or "", clip["source"], []))
        span = {"name": clip["clip_id"], "row_index": clip["row_index"], "start": clip["t_start"], "end": clip["t_end"]}
        crop = {"x": None, "y": None, "crop": clip["crop"], "crop_height": clip["source_height"]}
        row["segments"].append(span | crop | {name: clip[name] for name in TOLD})
    for row in rows.values():
        if found := _at_hand(videos, row["unit"]):
            status = found.stat()
            row |= {"path": str(found), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            del row["url"]
    return list(rows.values())


def _at_hand(videos: Path | None, video_id: str) -> Path | None:
    if videos is None:
        return None
    names = [video_id, *(f"{video_id}{suffix}" for suffix in sorted(VIDEO_SUFFIXES))]
    return next((videos / name for name in names if (videos / name).is_file()), None)


@dataclass(frozen=True)
class FitStage(Stage[Row]):
    """Over source rows: scales the crops to the current size of the video. Outputs: `segments`, `file_sha256`."""

    name = "rebuild_fit"
    version = "1"
    reads = ("unit", "path", "bytes", "mtime_ns", "segments")

    def __call__(self, row: Row) -> Outcome:
        """Probe one video; rejected when it cannot be used."""
        try:
            described = probe(row["path"])
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        segments = row["segments"]
        if any(segment["crop"] for segment in segments):
            segments = fit_crops(segments, described.width, described.height)
        return Outcome(row["unit"], "kept", outputs={"segments": segments, "file_sha256": sha256_file(row["path"])})


def _clips(source: Row) -> list[Row]:
    """The rows to cut of one source; a crop outside the current frame stays invalid, and the cut rejects it."""
    return [
        {
            "unit": segment["name"],
            "path": source["path"],
            "t_start": segment["start"],
            "t_end": segment["end"],
            "crop": (segment["crop"] or [0, 0, 0, 0]) if segment["crop_side"] else None,
            "size": [segment["crop_side"]] * 2 if segment["crop_side"] else None,
            "shift": segment["sync_offset_applied"] or 0,
            "sha256": segment["sha256"],
            "content_sha256": segment["content_sha256"],
            "same_source": source["file_sha256"] == segment["source_sha256"],
            "file_sha256": source["file_sha256"],
        }
        for segment in source["segments"]
    ]


@dataclass(frozen=True)
class RebuildStage(Stage[Row]):
    """Over the rows of clips to cut: writes `<folder>/<clip_id>.mp4` and compares it with the list."""

    name = "rebuild"
    version = RULE_VERSION
    reads = ("unit", "t_start", "t_end", "crop", "size", "shift", "sha256", "content_sha256", "file_sha256")
    folder: Path = no_effect()

    def __call__(self, row: Row) -> Outcome:
        """Cut one clip. Outputs: `state` and `why` of the report."""
        outcome = cut_row(self.folder, row, row["shift"])
        if outcome.state != "kept":
            return outcome
        if outcome.outputs["sha256"] == row["sha256"]:
            return Outcome(row["unit"], "kept", outputs={"state": SAME_BYTES, "why": None})
        if row["content_sha256"] == hash_content(self.folder / f"{row['unit']}.mp4"):
            return Outcome(row["unit"], "kept", outputs={"state": SAME_CONTENT, "why": None})
        why = "coded otherwise" if row["same_source"] else "another source file"
        return Outcome(row["unit"], "kept", outputs={"state": CHANGED, "why": why})

    def products(self, row: Row, outcome: Outcome) -> Mapping[Path, int | None]:
        """The clip file."""
        return {self.folder / f"{row['unit']}.mp4": None}


def _judge(row: Mapping[str, Any], rebuilt: Mapping[str, Row], why: Mapping[str, str]) -> Row:
    named = {"clip_id": row["clip_id"], "video_id": row["video_id"], "why": None}
    clip = rebuilt.get(row["clip_id"], {})
    if row["taken_down"]:
        return named | {"state": WITHDRAWN}
    if "state" in clip:
        return named | {"state": clip["state"], "why": clip["why"]}
    return named | {"state": GONE, "why": why.get(row["clip_id"]) or why.get(row["video_id"], "not made")}
