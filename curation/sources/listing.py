"""Source listing: one row per source video, in an order that does not depend on the file system."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from common.errors import MissingFileError
from common.storage import is_url
from curation.config import SourcesConfig
from curation.sources.avspeech import list_avspeech
from curation.sources.hdtf import list_hdtf, list_hdtf_set
from curation.sources.remote import SAFE_ID, WATCH, SourcesError, read_lines, remote_row, youtube_id

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
)


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
    paths = _in_folder(root) if config.kind == "folder" else _in_list(root)
    base = root if config.kind == "folder" else root.parent
    return [_row(config, base, path, number) for number, path in enumerate(paths)]


def _in_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingFileError(f"The source folder {folder} does not exist; set sources.path to a folder of videos.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    shown = sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.as_posix())
    if not shown:
        raise SourcesError(f"The source folder {folder} holds no video; expected files such as name.mp4 or name.mkv.")
    return shown


def _in_list(file: Path) -> list[Path]:
    if not file.is_file():
        raise MissingFileError(
            f"The source list {file} does not exist; set sources.path to a text file of video paths."
        )
    paths = [file.parent / line for line in _entries(file)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingFileError(f"{file} names {missing[0]}{more}, which does not exist; correct the list.")
    if not paths:
        raise SourcesError(f"The source list {file} is empty; write one video path per line.")
    return paths


def _entries(file: Path) -> list[str]:
    """The distinct entries of a text list, in its order."""
    return [line for line in dict.fromkeys(read_lines(file)) if line and not line.startswith("#")]


def _urls(file: Path, source: str) -> list[dict[str, Any]]:
    if not file.is_file():
        raise MissingFileError(f"The list {file} does not exist; set sources.path to a text file of addresses.")
    rows: dict[str, dict[str, Any]] = {}
    for entry in _entries(file):
        url, _, video_id = entry.partition(" ")
        if not is_url(url):
            raise SourcesError(f"{file} names {url!r}; expected an address such as https://host/video.mp4, then an id.")
        video = youtube_id(url)
        url = WATCH + video if video else url
        unit = video_id.strip() or video or hashlib.sha256(url.encode()).hexdigest()[:16]
        if not SAFE_ID.fullmatch(unit):
            raise SourcesError(f"{file} gives the id {unit!r}; expected letters, digits, '-', '_' and '.' only.")
        if rows.setdefault(unit, remote_row(unit, url, source, []))["url"] != url:
            raise SourcesError(f"{file} gives the id {unit!r} to {url} and to another address; ids must differ.")
    if not rows:
        raise SourcesError(f"The list {file} is empty; write one address per line.")
    return list(rows.values())


def _row(config: SourcesConfig, base: Path, path: Path, number: int) -> dict[str, Any]:
    status = path.stat()
    name = path.relative_to(base) if path.is_relative_to(base) else path
    return {
        "unit": name.as_posix(),
        "path": str(path),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "source": config.name or "folder",
        "row_index": number if config.kind == "list" else None,
        **_sidecar_fields(path.with_suffix(".json")),
    }


def _sidecar_fields(sidecar: Path) -> dict[str, Any]:
    """Caption and segments (format: `curation.sources.remote.remote_row`) from the JSON file beside a video."""
    fields: Any = {}
    if sidecar.is_file():
        try:
            fields = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError:
            fields = None
    if not isinstance(fields, dict):
        logger.warning('%s is not a JSON object and was ignored; expected {"caption": "..."}', sidecar)
        fields = {}
    return {
        "caption": str(fields["caption"]) if fields.get("caption") else None,
        "segments": fields.get("segments", []),
    }
