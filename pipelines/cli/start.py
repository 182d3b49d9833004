"""Entry point of `omniavatar`: checks that our packages are ours, then hands over to the command line.

Imports nothing but the standard library before the check: the package it is about may be the one imported.
"""

import atexit
import gc
import importlib.util
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

STOPPED = 75  # as common.process.signals.UNFINISHED
# Distributions with packages of several of these names exist on the package index.
OWN_PACKAGES = (
    "common",
    "perception",
    "omniavatar",
    "miniature",
    "audioavatar",
    "curation",
    "latents",
    "training",
    "eval",
    "pipelines",
)


def foreign_package() -> str:
    """What is wrong with the first of our packages that Python does not find beside this file; "" when all are ours."""
    root = Path(__file__).resolve().parents[2]
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return f"There is no package '{name}' beside {root}; install omniavatar-stack again."
        # A package without __init__.py has folders and no origin, a module an origin and no folders.
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
        if Path(places[0]).resolve() not in (root / name, root / "packages" / name):
            return (
                f"The package '{name}' is found at {places[0]}, which is not a part of omniavatar-stack: another "
                f"distribution or folder of that name comes first. Uninstall it (pip uninstall {name}) or remove it "
                "from PYTHONPATH, then install omniavatar-stack again."
            )
    return ""


def end_on_signals() -> None:
    """Before the command begins and after it has ended a stop signal ends the process without a traceback."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(STOPPED))
    # Registered first, so called last: after that Python takes its handlers away, and one more signal, as schedulers
    # send it, would hide the exit code that the command has ended with. Not blocked: that holds for one thread alone.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])


def main() -> None:
    """Run the command line, or end with one sentence when another distribution shadows one of our packages."""
    end_on_signals()
    problem = foreign_package()
    if problem:
        sys.exit(f"error: {problem}")
    import_module("common.process.offline").stay_offline()
    gc.disable()  # what is imported now stays, and would be searched for garbage again and again
    command_line = import_module("pipelines.cli.main")
    gc.enable()
    command_line.main()


if __name__ == "__main__":
    main()
