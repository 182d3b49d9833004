"""The command line inside the test's own process: what is imported once need not be imported for every command."""

import contextlib
import io
import sys
from typing import NamedTuple

from pipelines.cli.main import main


class Done(NamedTuple):
    """How a command ended, with what it printed; `stderr` holds the sentence it failed with, no progress."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: object) -> Done:
    """`omniavatar ARGUMENTS` as its entry point does it."""
    printed, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["omniavatar", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        failed = [line for line in errors.getvalue().splitlines() if "error: " in line or line.startswith("stopped")]
        return Done(int(end.code or 0), printed.getvalue(), "\n".join(failed))
    finally:
        sys.argv = before
    return Done(0, printed.getvalue(), "")
