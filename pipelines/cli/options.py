"""Options that several commands share, each defined once, and the groups that `--help` sorts the commands into."""

from collections.abc import Callable, Iterable
from os.path import exists, isdir, isfile, realpath
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import MissingFileError
from common.ranges import Range

RUN, CURATE, TRAIN, GENERATE, EVALUATE, MODELS = "Run", "Curate", "Train", "Generate", "Evaluate", "Models"


def check_utf8(texts: Iterable[str]) -> None:
    """Raise a usage error unless what a command is given is UTF-8: tables, JSON and DuckDB hold nothing else, so a name
    in another encoding would fail when it is written down, after the work."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise typer.BadParameter(f"{text!r} is not UTF-8; rename the file, or correct the text.") from error


def existing_run(run: Path | None) -> Path | None:
    """Callback of an option: the folder of a run that is there."""
    if run is not None:
        check_utf8([realpath(run)])
    if run is not None and not isdir(run):  # not Path.is_dir, which raises for a name that is too long
        raise MissingFileError(f"There is no run folder at {run}; give the folder that a run has written to.")
    return run


def existing_file(path: Path) -> Path:
    """Callback of an argument: a file that is there."""
    if not isfile(path):
        raise MissingFileError(f"There is {'a folder' if isdir(path) else 'no file'} at {path}; give a file.")
    return path


def not_a_file(folder: Path | None) -> Path | None:
    """Callback of an option: a folder to write, which may be there."""
    if folder is not None:
        check_utf8([realpath(folder)])  # a link may lead to another name
    if folder is not None and exists(folder) and not isdir(folder):
        raise typer.BadParameter(f"{folder} is a file; give a folder.")
    return folder


def not_a_folder(file: Path | None) -> Path | None:
    """Callback of an option: a file to write, which may be there."""
    if file is not None and isdir(file):
        raise typer.BadParameter(f"{file} is a folder; give the name of a file.")
    return file


def _settings(settings: list[str] | None) -> list[str] | None:
    for setting in settings or ():
        if not setting.partition("=")[0].strip() or "=" not in setting:
            raise typer.BadParameter(f"'{setting}' is not SECTION.KEY=VALUE; write e.g. --set train.steps=100")
    return settings


def within(low: float, *, open: bool = False) -> Callable[[Any], Any]:
    """Callback of an option: refuses numbers below `low` (with `open` also `low` itself), NaN and infinity."""
    allowed = Range(low, open=open)

    def check(value: Any) -> Any:
        if value is not None and not allowed.holds(value):
            raise typer.BadParameter(f"{value} was given, expected {allowed}.")
        return value

    return check


def pairs(words: list[str] | None, option: str, form: str, example: str) -> list[tuple[str, str]]:
    """The words of an option or argument, split at their "="; a usage error for any that is not of the `form`."""
    split = [word.partition("=") for word in words or ()]
    for name, equals, value in split:
        if not name or not value:
            raise typer.BadParameter(f"'{name}{equals}{value}' is not {form}; write e.g. {example}", param_hint=option)
    return [(name, value) for name, _, value in split]


RecipeOption = Annotated[str, typer.Option("--recipe", help="name of a shipped recipe, or path to a YAML file")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="run folder (default: runs/<recipe name>)", callback=not_a_file)
]
ExistingRunOption = Annotated[
    Path, typer.Option("--run", help="run folder that a command has written to", callback=existing_run)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="override a key of the recipe: section.key=value; may be repeated", callback=_settings),
]
ForceOption = Annotated[bool, typer.Option("--force", help="run finished steps again")]
RayOption = Annotated[str, typer.Option("--ray", help="run on a Ray cluster: auto, local or an address")]
RetryOption = Annotated[bool, typer.Option("--retry", help="retry units that exhausted their attempts")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="debug log lines, and tracebacks of errors")]


def executor_settings(ray: str, retry: bool) -> list[str]:
    """--ray and --retry as settings of the recipe."""
    cluster = ["executor.kind=ray", f"executor.ray_address={ray}"] if ray else []
    return cluster + (["executor.retry=true"] if retry else [])
