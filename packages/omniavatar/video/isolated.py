"""Decoding of foreign files in a child process: a native decoder that crashes ends the child and not the command.

One child per process, started by the first file, imports the decoders alone and stays for the files after it. What it
returns are numbers and arrays as raw bytes, never pickled objects.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from common.errors import InputError, MissingFileError, UserError
from common.media.open import MediaError, MediaFault
from common.process.signals import exit_reason, oom_kills

TIME_LIMIT = 300  # seconds for one file; four hours of sound take a quarter of it
_START = "from omniavatar.video.isolated import serve; serve()"


class DecoderStoppedError(UserError, RuntimeError):
    """A file took too long or too much memory; another time, or on another machine, it may not."""


def decode(function: str, path: Path | str) -> list[Any]:
    """The result of `function` ("module:name") for a file, a sequence of arrays and numbers, computed in the child.

    Raises what it raises of UserError, MediaError when the decoder crashed, DecoderStoppedError when it was killed or
    took longer than TIME_LIMIT, and RuntimeError with the child's traceback for a bug.
    """
    return _own_child().decode(function, path)


class _Child:
    """The process, started anew after each crash."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.oom_kills = 0  # that the kernel had counted when the process started
        self.log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - what native code says before it dies
        atexit.register(self.end)

    def decode(self, function: str, path: Path | str) -> list[Any]:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.end()
                self.process = self._start()
            answer: list[Any] | UserError | None = None
            try:
                request = {"function": function, "path": str(path), "folder": os.getcwd(), "seconds": TIME_LIMIT}
                answer = _ask(self.process, request)
            except (EOFError, BrokenPipeError):
                raise self._death(path, self.process.wait()) from None
            finally:
                if answer is None:  # interrupted, say: half of it may be in the pipe
                    self.end()
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self.log.seek(0)
        self.log.truncate()
        self.oom_kills = oom_kills()
        # -P: a file av.py in the working folder is not the library.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", _START]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment
        )

    def _death(self, path: Path | str, code: int) -> Exception:
        if code >= 0:
            self.log.seek(0)
            words = self.log.read().decode(errors="replace").strip()
            last = words.splitlines()[-1] if words else "no message"
            bug = RuntimeError(f"The process that decodes {path} ended with exit code {code}: {last}")
            bug.add_note(words)
            return bug
        if -code == signal.SIGALRM:
            return DecoderStoppedError(f"{path} was not decoded within {TIME_LIMIT:g} s; convert or shorten the file.")
        if -code in (signal.SIGKILL, signal.SIGTERM):
            return DecoderStoppedError(f"The decoder of {path} {exit_reason(code, self.oom_kills)}; try it again.")
        name = signal.Signals(-code).name
        return MediaError("unreadable", f"{path} cannot be decoded: its decoder crashed ({name}); convert the file.")

    def end(self) -> None:
        """Stop the process if this one started it."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
            self.process = None


_children: list[_Child] = []


def _own_child() -> _Child:
    if not _children or _children[0].owner != os.getpid():  # after a fork the pipes are the parent's
        _children[:] = [_Child()]
    return _children[0]


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> list[Any] | UserError:
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    reply = json.loads(line)
    if "error" in reply:
        return _error(**reply)
    return [_received(part, process.stdout) for part in reply["parts"]]


def _error(error: str, fault: MediaFault | None, missing: bool) -> UserError:
    if fault:
        return MediaError(fault, error)
    return MissingFileError(error) if missing else InputError(error)


def _received(part: Any, pipe: IO[bytes]) -> Any:
    if not isinstance(part, dict):
        return part
    array = np.empty(part["shape"], part["dtype"])
    if array.size and pipe.readinto(_bytes_of(array)) != array.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return array


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def serve() -> None:
    """The child: answers requests on its standard input until that ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which ends the child
    _prefer_to_be_killed()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])  # not handled: it ends native code as well
        module, _, name = request["function"].partition(":")
        parts: Sequence[Any] = ()
        os.chdir(request["folder"])  # which the command may have changed since this process started
        try:
            parts = getattr(import_module(module), name)(request["path"])
            reply: dict[str, Any] = {"parts": [_described(part) for part in parts]}
        except UserError as error:
            missing = isinstance(error, FileNotFoundError)
            reply = {"error": str(error), "fault": getattr(error, "kind", None), "missing": missing}
        except MemoryError:
            message = f"{request['path']} needs more memory than there is; give a smaller or shorter file."
            reply = {"error": message, "fault": "unreadable", "missing": False}
        replies.write(json.dumps(reply).encode() + b"\n")
        for part in parts:
            if isinstance(part, np.ndarray) and part.size:
                replies.write(_bytes_of(np.ascontiguousarray(part)))
        replies.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _described(part: Any) -> Any:
    return {"shape": part.shape, "dtype": part.dtype.str} if isinstance(part, np.ndarray) else part


def _prefer_to_be_killed() -> None:
    """Where memory runs out, this process goes, not the one with the model; and it leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
