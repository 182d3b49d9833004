"""The videos of a folder as people mean it: links followed once, hidden files and what we made of them left out."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from common.constants import VIDEO_SUFFIXES
from common.errors import MissingFileError
from curation.sources.remote import SourcesError

logger = logging.getLogger(__name__)

# A folder with this file holds what one of our commands made.
OUR_MARK = Path("ledger", "format.json")
# What commands write into a run folder; its drawn sources and whatever else lies there are not of them.
OUR_FOLDERS = frozenset(("cache", "checkpoints", "clips", "ledger", "logs", "per_frame", "report", "shards", "videos"))


def folder_videos(folder: Path) -> list[Path]:
    """The videos below a folder, by path; each file once, however many links lead to it.

    Told and left out: run folders below it, names that are not UTF-8, and what cannot be read. Raises MissingFileError,
    and SourcesError where nothing is left.
    """
    if not folder.is_dir():
        raise MissingFileError(f"The source folder {folder} does not exist; set sources.path to a folder of videos.")
    shown: dict[tuple[int, int], Path] = {}
    for path in _walk(folder):
        status = path.stat()
        first = shown.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            _leave_out(path, f"is the same file as {first}")
    if not shown:
        raise SourcesError(f"The source folder {folder} holds no video; expected files such as name.mp4 or name.mkv.")
    return sorted(shown.values(), key=lambda path: path.as_posix())


def _walk(root: Path) -> Iterator[Path]:
    """Every video that can be named and read; those behind links after all others, whose names are their own."""
    folders, linked, files = deque([root]), deque[Path](), list[Path]()
    visited: set[tuple[int, int]] = set()
    own = OUR_FOLDERS if (root / OUR_MARK).is_file() else frozenset[str]()
    while folders or linked:
        folder = folders.popleft() if folders else linked.popleft()
        try:
            status, entries = folder.stat(), sorted(folder.iterdir())
        except OSError as error:
            _leave_out(folder, f"cannot be read ({error.strerror})")
            continue
        if (status.st_dev, status.st_ino) in visited or (folder != root and _is_ours(folder)):
            continue
        visited.add((status.st_dev, status.st_ino))
        for path in entries:
            is_folder, is_link = os.path.isdir(path), os.path.islink(path)
            if path.name.startswith(".") or not (is_folder or path.suffix.lower() in VIDEO_SUFFIXES):
                continue
            if folder == root and path.name in own:
                continue
            if not _has_utf8_name(path):
                _leave_out(path, "has a name that is not UTF-8; rename it")
            elif not is_folder and not (os.path.isfile(path) and os.access(path, os.R_OK)):
                _leave_out(path, "is no file that can be read")
            elif not is_folder and is_link:
                files.append(path)
            elif not is_folder:
                yield path
            elif not is_link:
                folders.append(path)
            elif Path(os.path.realpath(root)).is_relative_to(os.path.realpath(path)):
                _leave_out(path, "is a link to a folder that holds the sources")
            else:
                linked.append(path)
    yield from files


def _is_ours(folder: Path) -> bool:
    ours = (folder / OUR_MARK).is_file()
    if ours:
        _leave_out(folder, "holds what one of our commands made")
    return ours


def _has_utf8_name(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leave_out(path: Path, why: str) -> None:
    logger.warning("%s %s: left out", ascii(str(path)) if not _has_utf8_name(path) else path, why)
