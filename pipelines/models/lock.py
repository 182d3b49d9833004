"""`weights.lock.json`: source, revision, sizes and SHA-256 of the files fetched into a folder."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.progress import ProgressBar, progress
from common.runs import hash_path, read_json, sha256_file, write_json

LOCK_FILE = "weights.lock.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class LockedFile:
    """A file as fetched."""

    bytes: int
    sha256: str
    source: str


@dataclass
class LockedEntry:
    """Files of one entry, by path inside the entry's folder; `revision` is a commit of the hub, "" for plain URLs."""

    licence: str
    revision: str = ""
    files: dict[str, LockedFile] = field(default_factory=dict)


def read_lock(folder: Path) -> dict[str, LockedEntry]:
    """Entry name -> locked entry, {} without a lock file. Raises ValueError for a damaged one."""
    path = folder / LOCK_FILE
    return {name: _entry(path, content) for name, content in read_json(path).items()} if path.exists() else {}


def _entry(path: Path, content: Mapping[str, Any]) -> LockedEntry:
    try:
        files = {name: LockedFile(**locked) for name, locked in content["files"].items()}
        return LockedEntry(content["licence"], content["revision"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a lock file of fetched weights ({error}); delete it and fetch again."
        ) from error


def write_lock(folder: Path, entries: Mapping[str, LockedEntry]) -> None:
    """Write the lock file atomically."""
    write_json(folder / LOCK_FILE, {name: asdict(entry) for name, entry in entries.items()})


def locked_files(path: Path) -> dict[Path, LockedFile]:
    """Entries of the nearest lock file above `path` for the files at or below it; {} without a lock file."""
    path = path.resolve()
    for folder in path.parents:
        if (folder / LOCK_FILE).exists():
            files = {
                folder / name / relative: locked
                for name, entry in read_lock(folder).items()
                for relative, locked in entry.files.items()
            }
            return {file: locked for file, locked in files.items() if file == path or path in file.parents}
    return {}


def model_hash(path: Path) -> str:
    """`hash_path` of a role's weights; fetched files of unchanged size take theirs from the lock file, unread."""
    locked = {file: entry for file, entry in locked_files(path).items() if file.is_file()}
    recorded = {file: entry.sha256 for file, entry in locked.items() if file.stat().st_size == entry.bytes}
    if not recorded:
        return hash_path(path)
    root = path.resolve()
    if root.is_file():
        return recorded[root]
    digest = hashlib.sha256()
    for file in sorted(item for item in root.rglob("*") if item.is_file()):
        content = recorded[file] if file in recorded else sha256_file(file)
        digest.update(f"{file.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def compare_with_lock(files: Mapping[Path, LockedFile], content: bool) -> list[str]:
    """Differences from the lock file: absent files and sizes, with `content` also SHA-256 (reads every byte)."""
    problems, same_size = [], {}
    for file, locked in files.items():
        found = file.stat().st_size if file.is_file() else None
        if found == locked.bytes:
            same_size[file] = locked
        else:
            state = "is absent" if found is None else f"has {found} bytes"
            problems.append(f"{file.name} {state}, expected {locked.bytes} as fetched; fetch it again")
    if content and same_size:
        bar: ProgressBar[int] = progress(sum(locked.bytes for locked in same_size.values()) // MEGABYTE, "hash, MB")
        with bar:
            for file, locked in same_size.items():
                if sha256_file(file) != locked.sha256:
                    problems.append(
                        f"{file.name} has changed since it was fetched (its SHA-256 differs); fetch it again"
                    )
                bar.update(locked.bytes // MEGABYTE)
    return problems
