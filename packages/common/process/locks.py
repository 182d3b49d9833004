"""Lock of a run folder: one writing command at a time; readers never wait for it.

The lock is a `flock` on `RUN/.lock`, which the kernel releases when its holder dies, however it dies. What the file
says (command, process, host, since when) is for people, and for file systems where the lock of one host is unknown to
another: NFS mounted with `nolock` or `local_lock`, Lustre with `localflock`, some FUSE mounts. There the time of the
file, which its holder refreshes, stands in for the lock.
"""

import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from common.errors import BusyError
from common.runs import is_leftover

LOCK = ".lock"
HELD = "OMNIAVATAR_HELD"  # environment variable: the locks held by this process or one it descends from
REFRESH_SECONDS, LOST_SECONDS = 10.0, 60.0  # how often a holder says that it lives, and when it counts as dead


class RunHeldError(BusyError):
    """Another command is writing into the run folder."""


@contextmanager
def hold_run(run_root: Path, command: str) -> Iterator[None]:
    """Be the only command that writes into a folder, from the start of the block to its end.

    A no-op where this process, or one that started it, holds the folder already. What a killed holder left unfinished
    is swept first. Raises RunHeldError, at once, that says who holds it.
    """
    file = (Path(run_root) / LOCK).resolve()
    if _held_above(file):
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file) as lock:
        if before := _entry(file):
            _refuse_living_host(file, before)
            _sweep(file.parent)
        _write_entry(lock, command)
        held = os.environ.get(HELD, "")
        os.environ[HELD] = "\n".join(filter(None, (held, f"{os.getpid()}:{file}")))
        ended = threading.Event()
        threading.Thread(target=_refresh, args=(file, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            os.environ[HELD] = held
            file.unlink(missing_ok=True)  # before it is unlocked: who waits for the name finds it gone, not free


@contextmanager
def _locked(file: Path) -> Iterator[FileIO]:
    while True:
        with FileIO(file, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunHeldError(f"{_held_by(file, _entry(file))}; wait until it ends, or stop it.") from error
            if not _is_at(lock, file):
                continue  # the holder before removed it between our opening and locking it
            _held_here[file] = lock
            try:
                yield lock
            finally:
                _held_here.pop(file, None)
            return


_held_here: dict[Path, FileIO] = {}


def _let_go_in_child() -> None:
    # A forked child shares the lock, and would keep it after the death of its parent.
    while _held_here:
        _held_here.popitem()[1].close()


os.register_at_fork(after_in_child=_let_go_in_child)


def _held_above(file: Path) -> bool:
    """Whether this process, or by the environment a living one that it descends from, holds the lock."""
    if file in _held_here:
        return True
    entry = _entry(file)
    named = f"{entry.get('pid')}:{file}" in os.environ.get(HELD, "").split("\n")
    return named and entry.get("host") == socket.gethostname() and _is_locked(file)


def _is_locked(file: Path) -> bool:
    with suppress(FileNotFoundError), FileIO(file, "r") as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _refuse_living_host(file: Path, entry: dict[str, Any]) -> None:
    """Raise RunHeldError for the entry of another host, whose lock may not be seen here, unless it has not been
    refreshed for long. Both times are those of the file system: clocks of hosts differ."""
    if entry.get("host") == socket.gethostname():
        return
    with tempfile.TemporaryFile(dir=file.parent) as now:
        silent = os.fstat(now.fileno()).st_mtime - file.stat().st_mtime
    if silent < LOST_SECONDS:
        raise RunHeldError(
            f"{_held_by(file, entry)}, on another host; wait until it ends. If it was killed, try again in "
            f"{LOST_SECONDS - max(0.0, silent):.0f} s."
        )


def _held_by(file: Path, entry: dict[str, Any]) -> str:
    who = "{command} (process {pid} on {host}, since {since})".format(**entry) if entry else "another command"
    return f"{file.parent} is being written by {who}"


def _entry(file: Path) -> dict[str, Any]:
    """What the holder wrote; empty before it did."""
    with suppress(OSError, ValueError):
        entry = json.loads(file.read_text("utf-8"))
        if isinstance(entry, dict) and {"command", "pid", "host", "since"} <= entry.keys():
            return entry
    return {}


def _write_entry(lock: FileIO, command: str) -> None:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    entry = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    lock.truncate(0)  # opened for appending: the write begins at the end, which is now the start
    lock.write(json.dumps(entry).encode() + b"\n")


def _refresh(file: Path, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        with suppress(OSError):
            os.utime(file)


def _is_at(lock: FileIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers anywhere in a run folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and is_leftover(Path(parent, name)):
                Path(parent, name).unlink(missing_ok=True)
