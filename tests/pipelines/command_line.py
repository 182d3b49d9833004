"""The command line inside the test's own process: what is imported once need not be imported for every command."""

import contextlib
import io
import sys
from typing import NamedTuple

from pipelines.cli.main import main as cli


class Done(NamedTuple):
    """How a command ended, with what it printed; `stderr` holds the sentence it failed with, no progress."""

    returncode: int
    stdout: str
    stderr: str


def run_here(*arguments: object) -> Done:
    """`omniavatar ARGUMENTS` as its entry point does it."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ["omniavatar", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
        return Done(code, printed.getvalue(), "") if isinstance(code, int) else Done(1, printed.getvalue(), str(code))
    finally:
        sys.argv = before
    return Done(0, printed.getvalue(), "")
