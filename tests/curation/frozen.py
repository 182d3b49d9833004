"""A finished run of two small talks made without judges: a clip table, a source table and the clip files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import clip_id, write_clips
from common.runs import RunFolder, sha256_file
from curation.reporting.summary import SOURCES_SCHEMA
from curation.stages.cut import cut_row
from curation.stages.shots import RULE_VERSION
from tests.curation.conftest import draw_talk, write_talk

# Video -> start, end, shift, crop of its clips.
PLAN = {
    "one": [(0.0, 0.8, 0, None), (1.0, 1.8, 2, None)],
    "two": [(0.2, 1.0, 0, [16, 8, 48, 48])],
}
RULES = {"cut": {"max_seconds": 20.0}, "select": {"min_sync_c": 4.0}}


def write_videos(folder: Path) -> Path:
    """one.mp4 and two.mp4."""
    for seed, name in enumerate(PLAN):
        write_talk(folder / f"{name}.mp4", draw_talk(seed, 2.0))
    return folder


def make_run(root: Path, videos: Path, urls: Mapping[str, str] | None = None) -> RunFolder:
    """Cut the plan; `urls` are the addresses of the videos, None for videos at hand."""
    run = RunFolder(root)
    clips: list[dict[str, Any]] = []
    for name, spans in PLAN.items():
        for start, end, shift, crop in spans:
            unit = clip_id(name, round(start * 1000), round(end * 1000), RULE_VERSION)
            row = {"unit": unit, "path": str(videos / f"{name}.mp4"), "t_start": start, "t_end": end}
            made = cut_row(run.clips, row | {"crop": crop, "size": [32, 32] if crop else None}, shift)
            fields = {"clip_id": unit, "video_id": name, "source": "urls", "t_start": start, "t_end": end}
            fields |= {"duration": round(end - start, 3), "width": 32 if crop else 64, "crop": crop, "split": "train"}
            fields |= {"decision": "kept", "reasons": [], "caption": "A secret.", "sync_c": 6.0}
            clips.append(fields | {"sync_offset_applied": shift, "sha256": made.outputs["sha256"]})
    refused = clips[0] | {"clip_id": "refused", "decision": "rejected", "reasons": ["low_sync"]}
    write_clips(run.clips_parquet, [*clips, refused])
    sources = [
        {"video_id": name, "height": 64, "url": urls[name] if urls else None, "state": "kept"}
        | {"sha256": sha256_file(videos / f"{name}.mp4"), "duration": 2.0}
        for name in PLAN
    ]
    pq.write_table(pa.Table.from_pylist(sources, SOURCES_SCHEMA), run.root / "sources.parquet")
    return run
