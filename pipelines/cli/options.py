"""Options that several commands share, each defined once, and the groups that `--help` sorts the commands into."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from common.errors import MissingFileError
from common.ranges import Range

RUN, CURATE, TRAIN, GENERATE, EVALUATE, MODELS = "Run", "Curate", "Train", "Generate", "Evaluate", "Models"


def _existing(run: Path) -> Path:
    if not run.is_dir():
        raise MissingFileError(f"There is no run folder at {run}; give the folder that a run has written to.")
    return run


def within(low: float, *, open: bool = False) -> Callable[[float | None], float | None]:
    """Callback of an option: refuses numbers below `low` (with `open` also `low` itself), NaN and infinity."""
    allowed = Range(low, open=open)

    def check(value: float | None) -> float | None:
        if value is not None and not allowed.holds(value):
            raise typer.BadParameter(f"{value} was given, expected {allowed}.")
        return value

    return check


def pairs(words: list[str] | None, option: str, example: str) -> list[tuple[str, str]]:
    """The words NAME=VALUE of an option or argument, split; a usage error for any other."""
    split = [word.partition("=") for word in words or ()]
    for name, equals, value in split:
        if not name or not value:
            raise typer.BadParameter(
                f"'{name}{equals}{value}' is not NAME=VALUE; write e.g. {example}", param_hint=option
            )
    return [(name, value) for name, _, value in split]


RecipeOption = Annotated[str, typer.Option("--recipe", help="name of a shipped recipe, or path to a YAML file")]
RunOption = Annotated[Path | None, typer.Option("--run", help="run folder (default: runs/<recipe name>)")]
ExistingRunOption = Annotated[
    Path, typer.Option("--run", help="run folder that a command has written to", callback=_existing)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a key of the recipe: section.key=value; may be repeated")
]
ForceOption = Annotated[bool, typer.Option("--force", help="run finished steps again")]
RayOption = Annotated[str, typer.Option("--ray", help="run on a Ray cluster: auto, local or an address")]
RetryOption = Annotated[bool, typer.Option("--retry", help="retry units that exhausted their attempts")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="debug log lines, and tracebacks of errors")]


def executor_settings(ray: str, retry: bool) -> list[str]:
    """--ray and --retry as settings of the recipe."""
    cluster = ["executor.kind=ray", f"executor.ray_address={ray}"] if ray else []
    return cluster + (["executor.retry=true"] if retry else [])
