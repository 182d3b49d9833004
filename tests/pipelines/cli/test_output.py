"""--json: one object as the last line, for every command and every end of one."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import typer

from pipelines.cli.main import app
from pipelines.cli.output import forget_result, json_line, report
from tests.pipelines.command_line import run_here


def leaves(command, path=()):
    """Every command of the tree, with its words."""
    if not hasattr(command, "commands"):
        return [(" ".join(path), command)]
    return [leaf for name, each in command.commands.items() for leaf in leaves(each, (*path, name))]


def test_every_command_has_it() -> None:
    found = dict(leaves(typer.main.get_command(app)))
    assert len(found) > 30
    lacking = [name for name, each in found.items() if not any("--json" in option.opts for option in each.params)]
    assert lacking == []


def last_line(*words: object) -> dict:
    done = run_here(*words, "--json")
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["exit_code"] == done.returncode
    return ended


def test_the_object_says_how_the_command_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = last_line("models", "list")
    assert (ended["command"], ended["exit_code"]) == ("models list", 0) and "error" not in ended
    assert "title" in next(iter(ended["result"]["entries"].values()))
    ended = last_line("status", "--run", tmp_path / "nowhere")
    assert ended["exit_code"] == 1 and ended["result"] == {} and "There is no run folder at" in ended["error"]
    assert last_line("status", "--nope")["exit_code"] == 2
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("common.executors.status.read_status", lambda run: 1 / 0)
    ended = last_line("status", "--run", tmp_path / "run")
    assert ended["exit_code"] == 70 and ended["error"].startswith("internal error: ZeroDivisionError")


def test_a_question_is_answered_with_rows_and_without_the_option_with_text_alone(tmp_path: Path) -> None:
    question = ("query", "select 1 as n, 0.5::decimal(3,1) as d", "--run", tmp_path)
    assert last_line(*question)["result"] == {"columns": ["n", "d"], "rows": [{"n": 1, "d": "0.5"}]}
    assert "{" not in run_here(*question).stdout


def test_what_json_has_no_form_for_becomes_text_or_null() -> None:
    forget_result()
    report(table=pa.table({"day": [date(2026, 1, 2)]}), nan=float("nan"), price=Decimal("1.5"), path=Path("a/b"))
    line = json_line("plan", 0, "")
    assert "\n" not in line and json.loads(line)["result"] == {
        "table": [{"day": "2026-01-02"}],
        "nan": None,
        "price": "1.5",
        "path": "a/b",
    }
    forget_result()
