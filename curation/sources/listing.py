"""Source listing: one row per source video, in an order that does not depend on the file system."""

import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
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


def list_sources(config: SourcesConfig) -> Iterator[dict[str, Any]]:
    """Rows with `unit` (the video id), path, bytes, mtime_ns, source, row_index, caption.

    For local videos the unit is the path relative to the folder, and caption (null without one) and segments
    come from a `<video>.json` beside the video. A remote video has `url` and `segments` instead of a path
    (`curation.sources.remote.remote_row`). What is wrong with the list as a whole is raised here, before the first row
    is asked for: FileNotFoundError for an absent folder, list or listed video, and SourcesError when there is no
    source. Of a list its text is held, never its rows.
    """
    root = Path(config.path).expanduser()
    if not config.path:
        raise SourcesError("sources.path is empty; set it to a folder of videos: --set sources.path=DIR")
    if config.kind == "avspeech":
        return list_avspeech(root, config.name)
    if config.kind == "hdtf":
        return iter(list_hdtf(root, config.name))
    if config.kind == "hdtf100" or config.kind == "hdtf400_15s":
        return iter(list_hdtf_set(config.kind, root, config.seed))
    if config.kind == "urls":
        return _urls(root, config.name or "urls")
    if config.kind == "list":
        return _in_list(config, root)
    rows = _in_folder(config, root, folder_videos(root))
    first = next(rows, None)
    if first is None:
        raise SourcesError(f"The source folder {root} holds generated videos only; expected videos of people.")
    return chain([first], rows)


def _in_folder(config: SourcesConfig, root: Path, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    generated = 0
    for path in paths:
        row = _row(config, root, path)
        if row.pop("generated"):
            generated += 1
        else:
            yield row
    if generated:
        logger.warning("%s: %d videos that `generate` wrote are left out", root, generated)


def _in_list(config: SourcesConfig, file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise MissingFileError(
            f"The source list {file} does not exist; set sources.path to a text file of video paths."
        )
    entries = _entries(file)
    missing = [entry for entry in entries if not os.path.isfile(file.parent / entry)]
    if not entries:
        raise SourcesError(f"The source list {file} is empty; write one video path per line.")
    if missing:
        example = file.parent / missing[0]
        if len(missing) == len(entries):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise MissingFileError(f"{file} names {example}{more}, which does not exist; correct the list.")
        logger.warning("%s names %d files that do not exist, such as %s", file, len(missing), example)
    return _listed_videos(config, file, entries, frozenset(missing))


def _listed_videos(
    config: SourcesConfig, file: Path, entries: Sequence[str], missing: Collection[str]
) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(entries):
        path = file.parent / entry
        if entry in missing:
            message = f"{path} does not exist; correct {file}."
            yield refused_row(_name(path, file.parent), config.name or "folder", "missing_file", message)
        else:
            row = _row(config, file.parent, path) | {"row_index": number}
            row.pop("generated")
            yield row


def _entries(file: Path) -> list[str]:
    """The distinct entries of a text list, in its order."""
    return [line for line in dict.fromkeys(line for _, line in text_lines(file)) if not line.startswith("#")]


def _urls(file: Path, source: str) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise MissingFileError(f"The list {file} does not exist; set sources.path to a text file of addresses.")
    addresses: dict[str, str] = {}
    wrong: list[tuple[str, str]] = []
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
            wrong.append((f"{file.name}:{entry[:200]}", problem))
        elif addresses.setdefault(unit, address) != address:
            raise SourcesError(f"{file} gives the id {unit!r} to {address} and to another address; ids must differ.")
    if not addresses:
        raise SourcesError(wrong[0][1] if wrong else f"The list {file} is empty; write one address per line.")
    if wrong:
        logger.warning("%s: %d lines cannot be used: %s", file, len(wrong), wrong[0][1])
    good = (remote_row(unit, address, source, []) for unit, address in addresses.items())
    return chain(good, (refused_row(unit, source, "malformed_row", problem) for unit, problem in wrong))


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
