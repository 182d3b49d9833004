"""Takedown of a video from the shards: samples, cached files, and a new version of the shards."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.clips import stream_clips
from common.runs import RunFolder, fingerprint, read_json
from common.shards.index import finish_removal, read_index
from common.shards.removal import remove_samples
from latents.constants import CONTENTS, cached, clips_digest

VERSION = "version.json"
FIELDS = ("clip_id", "video_id", "split", "caption", "sha256")


def forget_latents(run: RunFolder, clip_ids: Collection[str], tombstone: str) -> dict[str, int]:
    """Remove clips from `run.shards` and from the cache; returns how many "samples" of this tombstone have gone and
    how many cached "files" went now.

    `version.json` counts the versions of the shards, and keeps of each takedown `tombstone` and the number of samples.
    Shards that held what the clip table says still do, so the next latents job has nothing to do. Call it before the
    clips leave the clip table; killed, call it again. Raises DiskFullError, ShardError.
    """
    finish_removal(run.shards)
    folders = list((run.cache / "latents").glob("*"))
    encoded = [file for name in clip_ids for folder in folders if (file := cached(folder, name)).exists()]
    for file in encoded:
        file.unlink()
    files = {VERSION: _next_version(run.shards, clip_ids, tombstone)}
    contents = _contents_without(run, clip_ids)
    key = fingerprint(contents) if contents else ""
    remove_samples(run.shards, clip_ids, key, files | ({CONTENTS: contents} if contents else {}))
    samples = sum(entry["samples"] for entry in _log(run.shards) if entry["video"] == tombstone)
    return {"samples": samples, "files": len(encoded)}


def shards_version(shards: Path) -> int:
    """1, and one more for every takedown since the shards were first written."""
    return read_json(shards / VERSION, "version")["version"] if (shards / VERSION).exists() else 1


def _next_version(shards: Path, clip_ids: Collection[str], tombstone: str) -> dict[str, Any]:
    held = read_index(shards)["clip_id"].to_pylist() if (shards / "index.parquet").exists() else []
    entry = {"video": tombstone, "samples": len(set(clip_ids).intersection(held))}
    return {"version": shards_version(shards) + 1, "taken_down": [*_log(shards), entry]}


def _log(shards: Path) -> list[dict[str, Any]]:
    return read_json(shards / VERSION, "taken_down")["taken_down"] if (shards / VERSION).exists() else []


def _contents_without(run: RunFolder, clip_ids: Collection[str]) -> dict[str, Any] | None:
    """Description of the shards without these clips; None when they were out of date before, so that the next latents
    job packs them again anyway."""
    path = run.shards / CONTENTS
    if not path.exists() or not run.clips_parquet.exists() or not (run.shards / "index.parquet").exists():
        return None
    old = read_json(path)
    held = set(read_index(run.shards)["clip_id"].to_pylist())
    clips = [row for row in stream_clips(run.clips_parquet, FIELDS) if row["clip_id"] in held]
    if clips_digest(clips) != old["digest"]:
        return None
    remaining = [row for row in clips if row["clip_id"] not in clip_ids]
    return old | {"clips": len(remaining), "digest": clips_digest(remaining)}
