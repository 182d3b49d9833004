"""Content hashes with a cache on disk: hashing 57 GB of weights at every start would take minutes."""

import logging
from pathlib import Path
from typing import Any

from common.errors import DamagedFileError
from common.runs import hash_path, read_json, write_json

logger = logging.getLogger(__name__)
HASHES = "hashes.json"
"""The memory of a run, in its cache."""


def remembered_hash(path: Path, memory: Path) -> str:
    """What `hash_path` gives, read again only when a name, size or time of change of a file below `path` is another.

    `memory`: JSON file of what was computed before; one that is lost costs time only. Raises FileNotFoundError.
    """
    files = sorted(item for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file())
    marks = [[file.relative_to(path).as_posix(), *_marks(file)] for file in files]
    remembered = _read(memory) if memory.exists() else {}
    entry = remembered.get(str(path.resolve()))
    if files and isinstance(entry, dict) and entry.get("files") == marks and entry.get("hash"):
        return str(entry["hash"])
    computed = hash_path(path)
    write_json(memory, remembered | {str(path.resolve()): {"files": marks, "hash": computed}})
    return computed


def _read(memory: Path) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = read_json(memory)
    except DamagedFileError as error:
        if memory.is_dir():  # which no file can replace
            raise
        logger.warning("%s Weights are hashed again", error)
        return {}
    return entries


def _marks(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
