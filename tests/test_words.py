"""The field's words as tests: names and phrases that were renamed must not come back.

A new engineer searches for "KV cache", "rate limit", "retry" or "hang": names and sentences use the field's terms.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("packages", "curation", "latents", "training", "eval", "pipelines")

# Names of definitions, arguments and variables that say nothing about the value.
EMPTY_NAMES = {"told", "said", "known", "wanted", "given", "made", "left", "here"}
# Patterns in names -> what the field says.
NAME_PATTERNS = {
    r"(^|_)tell_": "log_* or report_*",
    r"(^|_)(sound|sounds)(_|$)|Sound": "audio",
    r"(^|_)(picture|pictures)(_|$)|Picture": "image or frame",
    r"(^|_)(hear|hears|heard|hearing|listen|audible)(_|$)|Audible": "audio",
    r"^Kept[A-Z]": "Cached*",
    r"^(Exit|Place|Pass|Tries|Heartbeat|Tally|Study|Sight|Seen|Look)$": "a name of its own, see the glossary",
    r"(^|_)(tally|pardon|forgiven|blamed|manners|probation|deaths|survive)(_|$)": "metrics, strikes, crashes ...",
}
PHRASES = {
    "asks nothing": "not a query",
    "who you are": "authentication required",
    "failed for good": "attempts exhausted",
    "for good": "permanently",
    "taken along": "worker crashes",
    "manners": "rate limit and back-off",
    "forgiven": "skipped",
    "blamed": "suspect",
    "stands still": "stalled",
    "puts up with": "tolerates",
    "bearable": "bounded",
    "for fear of": "say the reason",
    "suspicion": "untrusted",
    "exit_rests": "rate limited",
    "on probation": "cooling down",
    "to be heard": "audio encoder",
    "exit is silent": "rate limited",
    "is silent for": "rate limited for",
}


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a file defines, with its line: functions, classes, arguments, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def offences(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    where = path.relative_to(ROOT)
    wrong = []
    for name, line in names(ast.parse(text)):
        if name in EMPTY_NAMES:
            wrong.append(f"{where}:{line}: '{name}' says nothing about the value; use a noun for it")
        wrong += [
            f"{where}:{line}: '{name}': the field says {better}"
            for pattern, better in NAME_PATTERNS.items()
            if re.search(pattern, name)
        ]
    for number, line in enumerate(text.splitlines(), 1):
        wrong += [f'{where}:{number}: "{phrase}": {better}' for phrase, better in PHRASES.items() if phrase in line]
    return wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_and_sentences_are_the_fields(folder: str) -> None:
    wrong = [each for path in files() if path.relative_to(ROOT).parts[0] == folder for each in offences(path)]
    assert wrong == []


def test_docs_use_the_same_words() -> None:
    docs = [path for path in ROOT.rglob("*.md") if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)]
    wrong = [
        f"{path.relative_to(ROOT)}: {phrase!r}: {better}"
        for path in docs
        for phrase, better in PHRASES.items()
        if phrase in path.read_text("utf-8")
    ]
    assert wrong == []
