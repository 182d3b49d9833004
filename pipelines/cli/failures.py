"""Exit of a failing command: one sentence for what the user can correct, a traceback file for a bug."""

import sys
import tempfile
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

import typer
from typer.exceptions import TyperException

from common.errors import UserError, needs_extra, write_traceback
from common.runs import disk_guard
from common.text import printable

BUG_EXIT = 70  # EX_SOFTWARE of sysexits.h
# What the operating system says of a path the user gave; a bug may say it too, so the traceback is kept.
PATH_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

logs_folder: ContextVar[Path | None] = ContextVar("logs_folder", default=None)
"""Folder for the traceback of a bug: the logs of the run at work, set as soon as it is known."""


def run_command(command: Callable[[], object]) -> int:
    """Run a command to its exit code; what it raises becomes a sentence on standard error.

    1: the user can correct it. 70: a bug, with its traceback in the file that is named. --verbose prints tracebacks.
    """
    logs_folder.set(None)
    try:
        with disk_guard():
            code = command()
            return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _end("stopped; run the same command again to continue", 1)
    except TyperException as error:
        return _end(f"error: {error.format_message()}", 1)
    except UserError as error:
        return _end(f"error: {error}", 1, error)
    except Exception as error:  # the command line's one broad except: nothing may end without its traceback kept
        extra = needs_extra(error) if isinstance(error, ModuleNotFoundError) else None
        if extra is not None:
            return _end(f"error: {extra}", 1, error)
        file = traceback_file()
        sentence = write_traceback(error, file)
        if isinstance(error, PATH_ERRORS):
            return _end(f"error: {sentence} (traceback: {file})", 1, error)
        return _end(f"internal error: {type(error).__name__}: {sentence} (traceback: {file})", BUG_EXIT, error)


def traceback_file() -> Path:
    """Where the traceback of this command goes: the logs of its run, else a file of its own in the temporary folder."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    named = next((Path(run) / "logs" for run in _option("--run") if Path(run).is_dir()), None)
    folder = logs_folder.get() or named
    if folder is not None:
        return folder / f"error-{stamp}.txt"
    return Path(tempfile.mkdtemp(prefix="omniavatar-")) / f"error-{stamp}.txt"


def _option(name: str) -> list[str]:
    """Values of an option on the command line, read by hand: the parser may not have come that far."""
    words = sys.argv[1:]
    pairs = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return pairs + [value for word, value in zip(words, words[1:], strict=False) if word == name]


def _end(sentence: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and "--verbose" in sys.argv:
        traceback.print_exception(error)
    sys.stderr.write(printable(sentence) + "\n")
    return code
