"""Runs and sources on object storage: `s3://`, `gs://`, `abfs://` or `file://`, through pyarrow.

Work is done in a local folder. `fetch` brings one object into a cache; `Mirror` keeps a copy of a run folder
elsewhere, so that another machine goes on where one was lost. Object stores have no rename: an object appears whole
when its upload ends, and a mirror's manifest, written last, says which objects belong together. Until then the former
one holds.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from common.errors import UserError, shorten
from common.runs import disk_guard, fingerprint, read_json, sha256_file, temporary_beside, write_json

PART_BYTES = 8 * 2**20
MANIFEST = "manifest.json"
OBJECTS = "objects"
# What can be made again in no time, or lies where it came from; not so videos that took days to download.
NOT_MIRRORED, MIRRORED_YET = ("cache", "sources"), ("cache", "videos")


class StorageError(UserError, OSError):
    """An address that cannot be read or written."""


@dataclass(frozen=True)
class Listing:
    """One object: its path below the address that was listed, and its size in bytes."""

    path: str
    bytes: int


def is_url(text: str) -> bool:
    """Whether a text is an address of a storage, not a local path."""
    return "://" in text


def join(url: str, *names: str) -> str:
    """The address of something below `url`, whose options (`?region=...`) stay at its end."""
    place, mark, options = url.partition("?")
    return "/".join([place.rstrip("/"), *names]) + mark + options


def exists(url: str) -> bool:
    """Whether there is an object (or, on a file system, a folder) at `url`. Raises StorageError."""
    storage, path = _open(url)
    with _explained(url):
        return storage.get_file_info(path).type != fs.FileType.NotFound


def list_objects(url: str) -> list[Listing]:
    """Every object below a folder or prefix, by path; none when there is nothing. Raises StorageError."""
    storage, path = _open(url)
    with _explained(url):
        found = storage.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    files = [item for item in found if item.type == fs.FileType.File]
    return sorted(
        (Listing(PurePosixPath(f.path).relative_to(path).as_posix(), f.size) for f in files), key=lambda f: f.path
    )


def fetch(url: str, cache: Path) -> Path:
    """Bring an object into the folder `cache` and return the local path, of the same suffix.

    An object that is there already, of the same size and date, is not fetched again; a download that was killed goes on
    where it was. The file appears whole or not at all. Raises StorageError when there is no such object, DiskFullError.
    """
    storage, path = _open(url)
    with _explained(url):
        info = storage.get_file_info(path)
    if info.type != fs.FileType.File:
        raise StorageError(f"There is no object at {_shown(url)}; correct the address.")
    date = info.mtime.astimezone(UTC).isoformat() if info.mtime else ""
    suffix = PurePosixPath(path).suffix
    target = cache / f"{fingerprint([url, info.size, date])}{suffix}"
    if not target.exists() or target.stat().st_size != info.size:
        part = target.with_suffix(f"{suffix}.part")
        with _only_writer(part) as file:
            if target.exists() and target.stat().st_size == info.size:
                part.unlink()  # another process has fetched it while this one waited
            else:
                _download(url, storage, path, info.size, file)
                part.replace(target)
    return target


def bring(url: str, target: Path, digest: str) -> None:
    """Copy an object, whose SHA-256 is to be `digest`, to `target`, which appears whole. Raises StorageError,
    DiskFullError."""
    storage, path = _open(url)
    with _explained(url):
        info = storage.get_file_info(path)
    if info.type != fs.FileType.File:
        raise StorageError(f"There is no object at {_shown(url)}; the machine that made {target.name} copied none.")
    part = target.with_name(f".{target.name}.part")
    with _only_writer(part) as file:
        _download(url, storage, path, info.size, file)
        if sha256_file(part) != digest:
            part.unlink()
            raise StorageError(f"{_shown(url)} is not what its name says; remove it and run the same command again.")
        part.replace(target)


def publish(local: Path, url: str) -> None:
    """Copy a file to `url`, replacing what is there; readers see the old or the new whole. Raises StorageError."""
    storage, path = _open(url)
    parent = PurePosixPath(path).parent.as_posix()
    is_local = isinstance(storage, fs.LocalFileSystem)
    # On a file system an open file is seen half written; on an object store it appears when it is closed.
    written = f"{parent}/{temporary_beside(Path(path), 'part').name}" if is_local else path
    with _explained(url), open(local, "rb") as source:
        if is_local:
            storage.create_dir(parent, recursive=True)
        with storage.open_output_stream(written) as target:
            shutil.copyfileobj(source, target, PART_BYTES)
        if is_local:
            storage.move(written, path)


class Mirror:
    """A copy of a run folder at `url`: objects named by their content, and a manifest that gives them their paths."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = Path(root), url

    def push(self) -> int:
        """Copy what is new or changed since the last push, then the manifest; returns how many bytes were copied.

        For moments between stages. Killed in between, the mirror is still what it was after the push before, and the
        next push copies only what is missing. Raises StorageError, also for a file that changes meanwhile.
        """
        there = {item.path: item.bytes for item in list_objects(join(self.url, OBJECTS))}
        for name in [name for name in there if name.endswith(".part")]:  # an upload to a folder that was killed
            self._delete(name)
        manifest = self.root / "cache" / MANIFEST
        recorded = read_json(manifest, "files")["files"] if manifest.exists() else {}
        files: dict[str, dict[str, Any]] = {}
        copied = 0
        for path in self._files():
            name, status = path.relative_to(self.root).as_posix(), path.stat()
            stamp = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            same = {key: recorded.get(name, {}).get(key) for key in stamp} == stamp
            digest = recorded[name]["sha256"] if same else sha256_file(path)
            files[name] = stamp | {"sha256": digest}
            # An upload that broke off may have left a part under the whole's name.
            if there.get(digest) != status.st_size:
                publish(path, join(self.url, OBJECTS, digest))
                if (path.stat().st_size, path.stat().st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                    raise StorageError(f"{path} was written to while it was copied; push between stages, not in one.")
                there[digest] = status.st_size
                copied += status.st_size
        write_json(manifest, {"files": files})
        publish(manifest, join(self.url, MANIFEST))
        return copied

    def restore(self) -> int:
        """Bring what the manifest names and this folder lacks, never touching a file that is here: for an empty folder,
        or the one that has pushed. Returns how many files came; none when nothing is mirrored yet.

        Raises StorageError for an object that is gone or is not what its name says, DiskFullError.
        """
        if not exists(join(self.url, MANIFEST)):
            return 0
        missing = [(self.root / name, entry) for name, entry in self._named().items()]
        missing = [(path, entry) for path, entry in missing if not path.exists()]
        for path, entry in missing:
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise StorageError(
                    f"The manifest at {_shown(self.url)} names {path}, outside of the run; do not trust it."
                )
            self._bring(path, entry)
        return len(missing)

    def _named(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of every file. Raises StorageError for a manifest that no run wrote."""
        try:
            files = json.loads(_read(join(self.url, MANIFEST)))["files"]
            complete = all(isinstance(entry["sha256"], str) for entry in files.values())
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            complete, reason = False, shorten(str(error))
        else:
            reason = "a file in it has no hash"
        if not complete:
            raise StorageError(
                f"The manifest at {_shown(self.url)} is damaged ({reason}); delete {MANIFEST} there, and a run that "
                "has its files writes it again."
            )
        return files

    def sweep(self) -> int:
        """Remove objects that the manifest no longer names (a withdrawn video's, say); returns how many."""
        named: set[str] = set()
        if exists(join(self.url, MANIFEST)):
            named = {entry["sha256"] for entry in self._named().values()}
        stale = [item.path for item in list_objects(join(self.url, OBJECTS)) if item.path not in named]
        for name in stale:
            self._delete(name)
        return len(stale)

    def _delete(self, name: str) -> None:
        storage, path = _open(join(self.url, OBJECTS, name))
        with _explained(self.url):
            storage.delete_file(path)

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.root.rglob("*")):
            parts = path.relative_to(self.root).parts
            hidden = any(part.startswith(".") for part in parts) or path.suffix in (".tmp", ".part", ".partial")
            mirrored = parts[0] not in NOT_MIRRORED or parts[:2] == MIRRORED_YET
            if path.is_file() and mirrored and not hidden:
                yield path

    def _bring(self, path: Path, entry: dict[str, Any]) -> None:
        url = join(self.url, OBJECTS, entry["sha256"])
        storage, remote = _open(url)
        part = path.with_name(f".{path.name}.part")
        with _only_writer(part) as file:
            _download(url, storage, remote, entry["bytes"], file)
            if sha256_file(part) != entry["sha256"]:
                part.unlink()
                raise StorageError(
                    f"{_shown(url)} is not what its name says; push the run again from where it is whole."
                )
            # The time of the original, by which steps recognise their inputs and the next push the file.
            os.utime(part, ns=(entry["mtime_ns"], entry["mtime_ns"]))
            part.replace(path)


@contextmanager
def _only_writer(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file `part`, opened for appending by one process at a time; another one waits. It keeps its name,
    so that a download that was killed goes on where it was."""
    with disk_guard(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(part, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    continue  # the process that was waited for has renamed it
                yield file
                return


def _download(url: str, storage: fs.FileSystem, path: str, size: int, part: BinaryIO) -> None:
    """Write an object of `size` bytes to the open file `part`, going on behind what is there of it."""
    with _explained(url), storage.open_input_file(path) as source:
        if part.tell() > size:
            part.truncate(0)  # of another object
            part.seek(0)
        source.seek(part.tell())
        while piece := source.read(PART_BYTES):
            part.write(piece)
        part.flush()
        if part.tell() != size:
            raise StorageError(f"{_shown(url)} ended after {part.tell()} of {size} bytes; run the same command again.")


def _read(url: str) -> bytes:
    storage, path = _open(url)
    with _explained(url), storage.open_input_file(path) as source:
        return bytes(source.read())


def _open(url: str) -> tuple[fs.FileSystem, str]:
    if not is_url(url):
        raise StorageError(f"'{url}' is no address; expected one such as s3://bucket/folder or file:///folder.")
    with _explained(url):
        storage, path = fs.FileSystem.from_uri(url)
    return storage, path


def _shown(url: str) -> str:
    """An address without the keys that may be part of it."""
    return re.sub(r"//[^/@]*@", "//", url)


class _explained:
    """Context that names the address in whatever pyarrow raises; a full local disk stays what it is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        full = getattr(error, "errno", None) == errno.ENOSPC
        if isinstance(error, (pa.ArrowException, OSError)) and not isinstance(error, StorageError) and not full:
            message = " ".join(str(error).split())
            raise StorageError(f"{_shown(self.url)} cannot be used: {message}") from error
