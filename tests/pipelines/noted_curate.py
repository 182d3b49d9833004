"""The command line with workers that note every unit that they begin: `python -m tests.pipelines.noted_curate WORD...`.

Lines of `RUN.begun`, beside the run folder of the worker: stage, a space, unit.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common.executors.run as executors
from common.executors.host import Host
from common.ledger.store import Outcome
from pipelines.cli.main import main


def begun_file(run: Path) -> Path:
    """The file of a run folder."""
    return run.with_name(f"{run.name}.begun")


class NotingHost(Host):
    """A host that notes what it begins."""

    def load(self, step: int) -> list[int]:
        """As `Host.load`."""
        held = super().load(step)
        runner, folder = self._runners[step], self.ledger
        assert folder is not None
        runner.attempt = partial(_noted, begun_file(folder.parent), runner.stage.name, runner.attempt)  # type: ignore[method-assign]
        return held


def _noted(file: Path, stage: str, attempt: Callable[..., Outcome], unit: dict[str, Any], number: int) -> Outcome:
    line = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(line, f"{stage} {unit['unit']}\n".encode())
    os.close(line)
    return attempt(unit, number)


if __name__ == "__main__":
    from tests.pipelines.noted_curate import NotingHost as Importable  # not that of `__main__`

    executors.Host = Importable  # type: ignore[misc]
    sys.argv[0] = "omniavatar"
    main()
