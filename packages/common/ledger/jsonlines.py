"""Append-only JSON-lines files, robust to kill -9 and full disks: readers skip incomplete lines."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from common.errors import BusyError, damaged
from common.runs import disk_guard, plain

logger = logging.getLogger(__name__)


def json_bytes(value: Any) -> bytes:
    """A value as JSON on one line; of what `plain` reduces, its reduced form. NaN and infinities become null.

    Raises TypeError for a value that has no JSON form.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:  # also text that is not UTF-8, and numbers of more than 64 bits
        return json.dumps(plain(value), separators=(",", ":")).encode()


def json_value(text: str | bytes) -> Any:
    """What `json_bytes`, or an older version by way of `json`, has written."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


class JsonLines:
    """One file of JSON objects, one writer at a time; opened for writing at the first append."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: FileIO | None = None

    def append(self, row: dict[str, Any]) -> int:
        """Add one object as one line, in one write; returns the size of the file in bytes.

        Raises DiskFullError, and RuntimeError when another run is writing.
        """
        return self.append_bytes(json_bytes(row) + b"\n")

    def append_bytes(self, lines: bytes) -> int:
        """Add whole lines, in one write; returns and raises as `append`."""
        with disk_guard(self.path):
            file = self.open()
            before = os.fstat(file.fileno()).st_size
            if file.write(lines) != len(lines):
                # A short write means a full disk: remove the torn lines before raising.
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return before + len(lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The complete objects of the file in order; what is no object (a torn line, the NULs of a power cut) is
        skipped, and counted in a warning. A missing file has no rows. Raises DamagedFileError for a folder."""
        if not self.path.exists():
            return
        if self.path.is_dir():
            raise damaged(self.path, "expected a file", "is a folder")
        skipped = []
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.strip() and line.endswith(b"\n"):  # one without an end may still be in writing
                    skipped.append(number)
        if skipped:
            logger.warning("%s: %d lines are damaged and were ignored, first %d", self.path, len(skipped), skipped[0])

    def close(self) -> None:
        """Close the file, so that another writer may open it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def clear(self) -> None:
        """Delete all rows but keep the lock. Raises RuntimeError when another run is writing."""
        self.open().truncate(0)

    def remove(self) -> None:
        """Delete the file with all its rows. Raises RuntimeError when another run is writing."""
        self.open()
        self.path.unlink()
        self.close()

    def open(self) -> FileIO:
        """Open for appending with an exclusive lock. Raises RuntimeError when another process or object holds it."""
        if self._file is not None:
            return self._file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = FileIO(self.path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise BusyError(f"{self.path} is being written by another run; wait for it or stop it.") from error
            if _is_file(file, self.path):
                break
            file.close()  # the previous writer removed it between our opening and locking it
        size = os.fstat(file.fileno()).st_size
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            file.write(b"\n")  # a torn last line must not swallow the next one
        self._file = file
        return file


def _is_file(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
