"""Output of commands: text for a person, and with --json one object for a program as the last line."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from common.runs import plain
from common.untrusted.text import printable

JSON = "--json"
JsonOption = Annotated[
    bool, typer.Option(JSON, help="end with one line of JSON: command, exit_code, result, error if there was one")
]

_result: dict[str, Any] = {}


_sample = typer.Typer(add_completion=False)


@_sample.command()
def _takes_json(as_json: JsonOption = False) -> None: ...


class ReportingCommand(TyperCommand):
    """A command with --json, which is none of its function's arguments: the end of every command reads it."""

    def __init__(self, *arguments: Any, params: list[Any] | None = None, **options: Any) -> None:
        option = get_command(_sample).params[0]
        option.expose_value = False
        super().__init__(*arguments, params=[*(params or ()), option], **options)


def add_json(app: typer.Typer) -> None:
    """Give --json to every command of an app and of the groups in it."""
    for command in app.registered_commands:
        command.cls = ReportingCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_json(group.typer_instance)


def show(text: object, *, flush: bool = False) -> None:
    """Print a text or a path; what names and messages of others hold of control characters is spelled out."""
    print(printable(str(text)), flush=flush)


def report(**values: Any) -> None:
    """Add to the `result` that --json ends with: numbers, texts, paths, dataclasses, lists and dicts of these."""
    _result.update(values)


def forget_result() -> None:
    """Before a command: what one before it in this process has reported is not its own."""
    _result.clear()


def json_line(command: str, exit_code: int, error: str) -> str:
    """How a command ended, as one line."""
    ended = {"command": command, "exit_code": exit_code, "result": _json(_result)}
    return json.dumps(ended | ({"error": error} if error else {}))


def _json(value: Any) -> Any:
    """As `plain`; a table becomes a list of rows, what JSON has no form for (times, decimals) a text."""
    if hasattr(value, "to_pylist"):
        return _json(value.to_pylist())
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    try:
        return plain(value)
    except TypeError:
        return str(value)
