"""Inputs of each step outside the recipe, as values to compare, and whether its products are whole.

Cheap enough to be asked before every run: no network, no engine, and of large files only size and time.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.runs import RunFolder, fingerprint_rows, hash_path, read_json, sha256_file
from pipelines.dag import Context, InputsElsewhereError

logger = logging.getLogger(__name__)
HASHED_BYTES = 64 * 2**20

CLIP_CONTENT = ("clip_id", "video_id", "split", "caption", "sha256")


def file_stamps(paths: Iterable[Path | str]) -> list[Any]:
    """What tells whether files are as they were: their hashes, or where they are larger together than `HASHED_BYTES`
    their sizes and times; None for an absent file."""
    found = [(str(path), Path(path).stat() if Path(path).is_file() else None) for path in paths]
    if sum(status.st_size for _, status in found if status) <= HASHED_BYTES:
        return [status and sha256_file(path) for path, status in found]
    return [status and [status.st_size, status.st_mtime_ns] for _, status in found]


def sources(context: Context) -> Any:
    """Of `curate`: every listed source with its sidecar, and the lists that clips are held against.

    Raises InputsElsewhereError, and what `list_sources` raises.
    """
    from curation.config import SourcesConfig
    from curation.sources.listing import list_sources

    recipe = context.recipe
    if recipe.drawn is not None:
        return None
    config = recipe.sources
    if recipe.small_world is not None:
        config = SourcesConfig(path=str(Path(context.run.root) / "sources"))
    if config.path and not Path(config.path).expanduser().exists():
        raise InputsElsewhereError(
            f"the sources {config.path} do not exist here; set sources.path, or what was made of them is not compared"
        )
    paths: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in list_sources(config):
            if row["path"]:
                paths.append(row["path"])
            yield {name: value for name, value in row.items() if name != "mtime_ns"} | {"path": None}

    listed = fingerprint_rows(rows())
    named = [path for path in (recipe.curation.keep_out, recipe.curation.test_list) if path]
    return [listed, file_stamps(paths), file_stamps(named)]


def cut_clips_are_there(context: Context) -> bool:
    """Whether every clip of the clip table that has a file still has it. Raises DamagedFileError for a table that
    cannot be read."""
    from common.clips import stream_clips
    from common.parquet import check_parquet

    tables = [Path(context.run.root) / name for name in ("sources.parquet", "tracks.parquet")]
    check_parquet([table for table in tables if table.exists()])

    with os.scandir(context.run.clips) as files:
        names = {file.name for file in files}
    rows = stream_clips(context.run.clips_parquet, ("clip_id", "sha256"))
    return all(f"{row['clip_id']}.mp4" in names for row in rows if row["sha256"])


def kept_clips(context: Context) -> Any:
    """Of `latents`: what the shards have to hold."""
    return _kept_clips(context.run)


def shards_are_whole(context: Context) -> bool:
    """Whether every tar that the index names is there in its full length. Raises DamagedFileError for an index, a
    description or constants that cannot be read."""
    from common.shards.index import absent_tars, read_index
    from latents.constants import FILE_NAME, stored_widths

    shards(context)
    if (context.run.shards / FILE_NAME).exists():
        stored_widths(context.run.shards)
    return not absent_tars(context.run.shards, read_index(context.run.shards))


def shards(context: Context) -> Any:
    """Of `train`: the description of what the shards hold, and their version."""
    files = (context.run.shards / name for name in ("contents.json", "version.json"))
    return [read_json(file) if file.exists() else None for file in files]


def training_is_whole(context: Context) -> bool:
    """Whether the exported adapter is whole. Raises DamagedFileError for a latest checkpoint that is not: from it the
    training could not go on."""
    from training.checkpoint_files import export_problem, latest_checkpoint

    latest_checkpoint(context.run.checkpoints / "state")
    adapter = context.run.checkpoints / "adapter"
    if problem := export_problem(adapter):
        logger.warning("%s is damaged: %s", adapter, problem)
    return not problem


def requests(context: Context) -> Any:
    """Of `generate`: the trained adapter, the held-out clips, the portrait and the voice of the long video."""
    recipe, adapter = context.recipe, context.run.checkpoints / "adapter"
    long, extra = recipe.videos.long, recipe.generate.load.extra_lora
    files = [path for path in (long and long.image, long and long.audio, extra) if path]
    return [hash_path(adapter) if adapter.exists() else None, _kept_clips(context.run), file_stamps(files)]


def videos_are_there(context: Context) -> bool:
    """Whether every video of the manifest is there that could be made."""
    rows = [row for row in _manifest(context.run) if row.get("sha256") != ""]
    return all((context.run.root / row["video"]).is_file() for row in rows)


def metrics_are_there(context: Context) -> bool:
    """Whether the table of metrics is there. Raises DamagedFileError where it cannot be read."""
    from common.parquet import check_parquet

    table = context.run.report / "metrics.parquet"
    if table.exists():
        check_parquet([table])
    return table.exists()


_FILES = ("video", "reference", "audio", "image", "motion", "motion_reference", "turned")


def videos(context: Context) -> Any:
    """Of `eval`: the manifest and every file that it names, and the long video, with what its generator wrote."""
    rows, root = _manifest(context.run), Path(context.run.root)
    named = {row.get(name) for row in rows for name in _FILES} | {"videos/demo.mp4", "videos/demo_avatar.mp4"}
    files = sorted(root / name for name in named if name)
    return [rows, file_stamps([*files, *(file.with_suffix(".json") for file in files)])]


def _kept_clips(run: RunFolder) -> str | None:
    from common.clips import stream_clips

    if not run.clips_parquet.exists():
        return None
    rows = stream_clips(run.clips_parquet, (*CLIP_CONTENT, "decision"))
    return fingerprint_rows([row[name] for name in CLIP_CONTENT] for row in rows if row["decision"] == "kept")


def _manifest(run: RunFolder) -> list[dict[str, Any]]:
    from common.parquet import read_table

    file = Path(run.root) / "videos" / "manifest.parquet"
    return list(read_table(file).to_pylist()) if file.exists() else []
