"""Append-only JSON-lines files that outlive kill -9 and full disks: a line is there whole or is ignored."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from common.errors import BusyError
from common.runs import disk_guard, plain

logger = logging.getLogger(__name__)


class JsonLines:
    """One file of JSON objects, one writer at a time; opened for writing at the first append."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: FileIO | None = None

    def append(self, row: dict[str, Any]) -> int:
        """Add one object as one line, in one write; returns the size of the file in bytes.

        Errors: DiskFullError; RuntimeError when another run writes.
        """
        line = json.dumps(plain(row), separators=(",", ":")).encode() + b"\n"
        with disk_guard(self.path):
            file = self.open()
            before = os.fstat(file.fileno()).st_size
            if file.write(line) != len(line):
                # A short write means a full disk: take the torn line back before saying so.
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return before + len(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole objects of the file in order; torn lines are passed over. No file, no rows."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    logger.debug("%s: line %d is torn and was ignored", self.path, number)

    def close(self) -> None:
        """Let go of the file, so that another writer may open it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def clear(self) -> None:
        """Forget all rows and stay the one writer. Errors: RuntimeError when another run writes."""
        self.open().truncate(0)

    def remove(self) -> None:
        """Forget all rows and the file with them. Errors: RuntimeError when another run writes."""
        self.open()
        self.path.unlink()
        self.close()

    def open(self) -> FileIO:
        """Open for appending, alone. Errors: RuntimeError when another process or object has it open."""
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
            file.close()  # its last writer removed it between our opening and locking it
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
