"""A run of small videos with any ids, made of tables, ledger rows and files that hold a few bytes: no media."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import clip_id, write_clips
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder, fingerprint
from curation.reporting.summary import SOURCES_SCHEMA

FINGERPRINT = "0" * 16


def clip_of(video: str) -> str:
    """The clip_id of the one clip of a video."""
    return clip_id(video, 0, 1000, "1")


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def draw_run(root: Path, videos: Sequence[str], remote: bool = False) -> RunFolder:
    """A run with a clip per video, its scan, a feature of it and a feature that all videos share; `remote` ones are
    downloads, others lie in `sources/`. A ledger message of each names all of them."""
    run = RunFolder(root)
    folder = root / ("cache/videos" if remote else "sources")
    names = {video: f"{video}.mp4" if remote else video for video in videos}
    sources = [{"video_id": video, "path": str(folder / names[video]), "state": "kept"} for video in videos]
    clips = [
        {"clip_id": clip_of(video), "video_id": video, "source": "folder", "t_start": 0.0, "t_end": 1.0}
        | {"duration": 1.0, "decision": "kept", "reasons": [], "split": "train"}
        for video in videos
    ]
    write_clips(run.clips_parquet, clips)
    pq.write_table(pa.Table.from_pylist(sources, SOURCES_SCHEMA), root / "sources.parquet")
    manifest = [
        {"method": "adapter", "clip_id": clip_of(video), "group": video, "role": "judged", "seed": 0, "image": "i.png"}
        | {"video": f"videos/adapter/{clip_of(video)}.mp4"}
        for video in videos
    ]
    write(root / "videos/i.png", "everybody's picture")
    pq.write_table(pa.Table.from_pylist(manifest), run.videos / "manifest.parquet")
    outputs: dict[str, list[tuple[str, dict[str, Any]]]] = {"probe": [], "scan": [], "cut": [], "eval": []}
    for video in videos:
        scan, clip = f"{fingerprint(video)}.scan.parquet", clip_of(video)
        write(folder / names[video], f"pixels of {video}")
        write(folder / Path(names[video]).with_suffix(".json"), json.dumps({"height": 1, "note": 0}))
        write(root / f"clips/{clip}.mp4", f"clip of {video}")
        write(root / f"videos/adapter/{clip}.mp4", f"made of {video}")
        write(root / f"cache/features/fid/{fingerprint(video)}.npz", f"features of {video}")
        (root / "per_frame").mkdir(exist_ok=True)
        pq.write_table(pa.table({"video_id": [video]}), root / "per_frame" / scan)
        outputs["probe"].append((video, {"duration": 1.0}))
        outputs["scan"].append((video, {"scan_file": scan}))
        outputs["cut"].append((clip, {"sha256": "0", "loudness": [0, 1]}))
        files = {"fid": f"fid/{fingerprint(video)}.npz", "all": "fid/shared.npz"}
        outputs["eval"].append((f"adapter/{clip}/0", {"files": files}))
    write(root / "cache/features/fid/shared.npz", "features of all")
    for stage, rows in outputs.items():
        with Ledger(run.ledger).open(stage, FINGERPRINT) as log:
            for unit, output in rows:
                log.append((unit, "x"), Outcome(unit, "kept", message=f"beside {' '.join(videos)}", outputs=output))
            log.compact()
    return run
