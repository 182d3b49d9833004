"""Ends of a command: exit codes, one sentence for what the user can correct, a traceback file for a bug."""

import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime
from itertools import takewhile
from pathlib import Path

import typer
from typer.exceptions import TyperException

from common.errors import UserError, damaged, needs_extra, write_traceback
from common.process.signals import UNFINISHED, Stopped, stop_signals, stop_that_came
from common.runs import disk_guard
from common.untrusted.text import printable
from pipelines.cli.output import JSON, forget_result, json_line

ERROR_EXIT, USAGE_EXIT = 1, 2
BUG_EXIT = 70  # EX_SOFTWARE of sysexits.h
CLOSED_PIPE_EXIT = 141  # 128 + SIGPIPE, as a shell reports a program whose reader (`| head`) has gone
# What the operating system says of a path the user gave; a bug may say it too, so the traceback is kept.
PATH_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

logs_folder: ContextVar[Path | None] = ContextVar("logs_folder", default=None)
"""Folder for the traceback of a bug: the logs of the run at work, set as soon as it is known."""
_said: ContextVar[str] = ContextVar("said", default="")  # the sentence that the command ended with


def end_command(command: Callable[[], object], words: Sequence[str]) -> int:
    """`run_command`, and with --json among the words of the command line its end as the last line of the output."""
    forget_result()
    code = run_command(command)
    if JSON not in words:
        return code
    verb = " ".join(takewhile(lambda word: not word.startswith("-"), words))
    line = json_line(verb, code, _said.get())
    return run_command(lambda: print(line)) or code


def run_command(command: Callable[[], object]) -> int:
    """Run a command to its exit code; what it raises becomes a sentence on standard error.

    0: done. 1: the user can correct it. 2: the command line is wrong. 70: a bug, with its traceback in the file that is
    named. 75: stopped by a signal, goes on when run again. 141: whoever read the output has gone. --verbose prints
    tracebacks.
    """
    logs_folder.set(None)
    _said.set("")
    try:
        with stop_signals(), disk_guard():
            code = command()
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
            return code if isinstance(code, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError as error:
        return CLOSED_PIPE_EXIT if _reader_has_gone() else _end_bug(error)
    except SystemExit as end:  # of a library: rich turns a closed pipe into one
        return CLOSED_PIPE_EXIT if isinstance(end.__context__, BrokenPipeError) else _end_exit(end)
    except (typer.Abort, KeyboardInterrupt) as stop:
        return _end(_stopped(stop), UNFINISHED)
    except TyperException as error:
        return _end(_usage(error), error.exit_code)
    except UserError as error:
        return _end_stopped() or _end(f"error: {error}", ERROR_EXIT, error)
    except Exception as error:  # the command line's one broad except: nothing may end without its traceback kept
        if code := _end_stopped():
            return code
        extra = needs_extra(error) if isinstance(error, ModuleNotFoundError) else None
        if extra is not None:
            return _end(f"error: {extra}", ERROR_EXIT, error)
        return _end_bug(error)


def prepare_streams() -> None:
    """Make output safe: what a terminal's encoding lacks is written as an escape, and a closed stream goes nowhere.

    Without the latter the next file to be opened takes the number of the closed stream, and gets what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def traceback_file() -> Path:
    """Where the traceback of this command goes: the logs of its run, else a file of its own in the temporary folder."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    named = next((Path(run) / "logs" for run in _option("--run") if os.path.isdir(run)), None)
    folder = logs_folder.get() or named
    if folder is not None:
        return folder / f"error-{stamp}.txt"
    return Path(tempfile.mkdtemp(prefix="omniavatar-")) / f"error-{stamp}.txt"


def _option(name: str) -> list[str]:
    """Values of an option on the command line, read by hand: the parser may not have come that far."""
    words = sys.argv[1:]
    pairs = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return pairs + [value for word, value in zip(words, words[1:], strict=False) if word == name]


def _usage(error: TyperException) -> str:
    """What is wrong with the command line; empty when the help has been printed instead."""
    message = " ".join(error.format_message().split())
    if not message:
        return ""
    # Of a value of a wrong type, with the value in it.
    refused: list[dict[str, object]] = getattr(error.__cause__, "errors", list)()
    value = f" '{refused[0]['input']}' was given." if refused else ""
    context = getattr(error, "ctx", None)
    help_hint = f" See {context.command_path} --help." if context else ""
    return f"error: {message}{'' if message[-1] in '.?' else '.'}{value}{help_hint}"


def _stopped(stop: BaseException) -> str:
    signal_name = stop.name if isinstance(stop, Stopped) else "SIGINT"
    logs = logs_folder.get()
    notes = getattr(stop, "__notes__", None) or [f"what is finished is kept{f' in {logs.parent}' if logs else ''}"]
    return f"stopped by {signal_name}: {'; '.join(notes)}; run the same command again to go on"


def _end_exit(end: SystemExit) -> int:
    """The exit code of `sys.exit`, which takes a number, nothing for 0, or a sentence for 1."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    return _end(f"error: {end.code}", ERROR_EXIT, end)


def _end_stopped() -> int:
    """The exit code of a stop that a library has turned into an error of its own; 0 when there was none."""
    stop = stop_that_came()
    return _end(_stopped(stop), UNFINISHED) if stop else 0


def _reader_has_gone() -> bool:
    """Whether the reader of standard output has closed its end; then nothing more is written there."""
    output = select.poll()
    output.register(1, 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def _end_bug(error: Exception) -> int:
    file = traceback_file()
    sentence = write_traceback(error, file)
    if isinstance(error, IsADirectoryError) and error.filename:
        sentence = str(damaged(error.filename2 or error.filename, "expected a file", "is a folder"))
    if isinstance(error, PATH_ERRORS) or (isinstance(error, OSError) and error.filename is not None):
        return _end(f"error: {sentence} (traceback: {file})", ERROR_EXIT, error)
    return _end(f"internal error: {type(error).__name__}: {sentence} (traceback: {file})", BUG_EXIT, error)


def _end(sentence: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and "--verbose" in sys.argv:
        traceback.print_exception(error)
    _said.set(sentence)
    if sentence and sys.stderr is not None:
        sys.stderr.write(printable(sentence) + "\n")
    return code
