"""Source listing: one row per source video, in an order that does not depend on the file system."""

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any

from common.errors import MissingFileError
from common.storage import is_url
from common.untrusted.lists import text_lines
from common.untrusted.sidecars import read_sidecar, text_field
from curation.config import SourcesConfig
from curation.sources.avspeech import list_avspeech
from curation.sources.folder import folder_videos
from curation.sources.hdtf import list_hdtf, list_hdtf_set
from curation.sources.remote import SAFE_ID, WATCH, SourcesError, refused_row, remote_row, youtube_id

logger = logging.getLogger(__name__)

# Keys of the JSON that `generate` writes beside a video.
GENERATED = {"settings", "versions", "fps"}


def list_sources(config: SourcesConfig) -> list[dict[str, Any]]:
    """Rows with `unit` (the video id), path, bytes, mtime_ns, source, row_index, caption.

    For local videos the unit is the path relative to the folder, and caption (null without one) and segments
    come from a `<video>.json` beside the video. A remote video has `url` and `segments` instead of a path
    (`curation.sources.remote.remote_row`). Raises FileNotFoundError for an absent folder, list or listed video, and
    SourcesError when there is no source.
    """
    root = Path(config.path).expanduser()
    if not config.path:
        raise SourcesError("sources.path is empty; set it to a folder of videos: --set sources.path=DIR")
    if config.kind == "avspeech":
        return list_avspeech(root, config.name)
    if config.kind == "hdtf":
        return list_hdtf(root, config.name)
    if config.kind == "hdtf100" or config.kind == "hdtf400_15s":
        return list_hdtf_set(config.kind, root, config.seed)
    if config.kind == "urls":
        return _urls(root, config.name or "urls")
    if config.kind == "list":
        return _in_list(config, root)
    rows = [_row(config, root, path) for path in folder_videos(root)]
    sources = [row for row in rows if not row.pop("generated")]
    if len(sources) < len(rows):
        logger.warning("%s: %d videos that `generate` wrote are left out", root, len(rows) - len(sources))
    if not sources:
        raise SourcesError(f"The source folder {root} holds generated videos only; expected videos of people.")
    return sources


def _in_list(config: SourcesConfig, file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise MissingFileError(
            f"The source list {file} does not exist; set sources.path to a text file of video paths."
        )
    paths = [file.parent / line for line in _entries(file)]
    missing = [path for path in paths if not os.path.isfile(path)]
    if not paths:
        raise SourcesError(f"The source list {file} is empty; write one video path per line.")
    if len(missing) == len(paths):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingFileError(f"{file} names {missing[0]}{more}, which does not exist; correct the list.")
    if missing:
        logger.warning("%s names %d files that do not exist, such as %s", file, len(missing), missing[0])
    absent, rows = set(missing), []
    for number, path in enumerate(paths):
        if path in absent:
            message = f"{path} does not exist; correct {file}."
            rows.append(refused_row(_name(path, file.parent), config.name or "folder", "missing_file", message))
        else:
            rows.append(_row(config, file.parent, path) | {"row_index": number})
            rows[-1].pop("generated")
    return rows


def _entries(file: Path) -> list[str]:
    """The distinct entries of a text list, in its order."""
    return [line for line in dict.fromkeys(line for _, line in text_lines(file)) if not line.startswith("#")]


def _urls(file: Path, source: str) -> list[dict[str, Any]]:
    if not file.is_file():
        raise MissingFileError(f"The list {file} does not exist; set sources.path to a text file of addresses.")
    rows: dict[str, dict[str, Any]] = {}
    wrong: list[dict[str, Any]] = []
    for entry in _entries(file):
        url, _, video_id = entry.partition(" ")
        video = youtube_id(url)
        address = WATCH + video if video else url
        unit = video_id.strip() or video or hashlib.sha256(address.encode()).hexdigest()[:16]
        problem = ""
        if not is_url(url):
            problem = f"{file} names {url!r}; expected an address such as https://host/video.mp4, then an id."
        elif not SAFE_ID.fullmatch(unit):
            problem = f"{file} gives the id {unit!r}; expected letters, digits, '-', '_' and '.' only."
        if problem:
            wrong.append(refused_row(f"{file.name}:{entry[:200]}", source, "malformed_row", problem))
        elif rows.setdefault(unit, remote_row(unit, address, source, []))["url"] != address:
            raise SourcesError(f"{file} gives the id {unit!r} to {address} and to another address; ids must differ.")
    if wrong and not rows:
        raise SourcesError(wrong[0]["refused"]["message"])
    if not rows:
        raise SourcesError(f"The list {file} is empty; write one address per line.")
    if wrong:
        logger.warning("%s: %d lines cannot be used: %s", file, len(wrong), wrong[0]["refused"]["message"])
    return [*rows.values(), *wrong]


def _row(config: SourcesConfig, base: Path, path: Path) -> dict[str, Any]:
    status = path.stat()
    sidecar = path.with_suffix(".json")
    fields = read_sidecar(sidecar)
    return {
        "unit": _name(path, base),
        "path": str(path),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "source": config.name or "folder",
        "row_index": None,
        "caption": text_field(fields, "caption", sidecar),
        "segments": _segments(fields, sidecar),
        "generated": fields.keys() >= GENERATED,
    }


def _name(path: Path, base: Path) -> str:
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _segments(fields: dict[str, Any], sidecar: Path) -> list[dict[str, Any]]:
    """The segments of a sidecar in the form of `curation.sources.remote.remote_row`."""
    segments = fields.get("segments") or []
    if not isinstance(segments, list) or not all(map(_is_segment, segments)):
        logger.warning(
            "%s: segments are no spans of a data set (row_index, start, end, x, y) and were ignored", sidecar
        )
        return []
    return segments


def _is_segment(value: Any) -> bool:
    """Whether a value of a sidecar is a segment; those of a transcriber have a start and an end too, and no place."""
    if not isinstance(value, dict) or not {"row_index", "start", "end", "x", "y"} <= value.keys():
        return False
    row, crop = value["row_index"], value.get("crop")
    if not all(_is_number(value[name]) for name in ("row_index", "start", "end")) or not isinstance(row, int):
        return False
    place = (value["x"], value["y"])
    placed = place == (None, None) or all(_is_number(each) and 0 <= each <= 1 for each in place)
    cropped = crop is None or (isinstance(crop, list) and len(crop) == 4 and all(map(_is_number, crop)))
    return placed and cropped and 0 <= row < 2**63 and 0 <= value["start"] < value["end"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
