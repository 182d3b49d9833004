"""Which videos go in? One row per source video, in an order that does not depend on the file system."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
)


class SourcesError(ValueError):
    """The recipe names sources that cannot be listed."""


@dataclass(frozen=True)
class SourcesConfig:
    """Where the videos are.

    `kind` "folder": every video file below `path`. "list": `path` is a text file with one video per line, relative to
    the list; empty lines and lines that begin with # are passed over. `name` goes into the `source` field of the clips.
    """

    path: str = ""
    kind: Literal["folder", "list"] = "folder"
    name: str = "folder"


def list_sources(config: SourcesConfig) -> list[dict[str, Any]]:
    """Rows with `unit` (the video id: path relative to the folder), path, bytes, mtime_ns, source, row_index, caption.

    The caption comes from a `<video>.json` beside the video, null without one. Raises FileNotFoundError for an absent
    folder, list or listed video, and SourcesError when there is nothing to do.
    """
    root = Path(config.path).expanduser()
    if not config.path:
        raise SourcesError("sources.path is empty; set it to a folder of videos: --set sources.path=DIR")
    paths = _in_folder(root) if config.kind == "folder" else _in_list(root)
    base = root if config.kind == "folder" else root.parent
    return [_row(config, base, path, number) for number, path in enumerate(paths)]


def _in_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"The source folder {folder} does not exist; set sources.path to a folder of videos.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    shown = sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.as_posix())
    if not shown:
        raise SourcesError(f"The source folder {folder} holds no video; expected files such as name.mp4 or name.mkv.")
    return shown


def _in_list(file: Path) -> list[Path]:
    if not file.is_file():
        raise FileNotFoundError(
            f"The source list {file} does not exist; set sources.path to a text file of video paths."
        )
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    paths = [file.parent / line for line in dict.fromkeys(lines) if line and not line.startswith("#")]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{file} names {missing[0]}{more}, which does not exist; correct the list.")
    if not paths:
        raise SourcesError(f"The source list {file} is empty; write one video path per line.")
    return paths


def _row(config: SourcesConfig, base: Path, path: Path, number: int) -> dict[str, Any]:
    status = path.stat()
    name = path.relative_to(base) if path.is_relative_to(base) else path
    return {
        "unit": name.as_posix(),
        "path": str(path),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "source": config.name,
        "row_index": number if config.kind == "list" else None,
        "caption": _caption(path.with_suffix(".json")),
    }


def _caption(sidecar: Path) -> str | None:
    if not sidecar.is_file():
        return None
    try:
        caption = json.loads(sidecar.read_text(encoding="utf-8")).get("caption")
    except (ValueError, AttributeError):
        logger.warning('%s is not a JSON object and was ignored; expected {"caption": "..."}', sidecar)
        return None
    return str(caption) if caption else None
