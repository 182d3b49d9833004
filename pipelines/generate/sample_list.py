"""List files of samples: the released code's `prompt@@image@@audio` lines, CSV with a header, or JSON lines.

A line that cannot be used becomes a sample with an error; the others are not affected.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import MissingFileError, UserError
from omniavatar.config import Request

COLUMNS = ("prompt", "image", "audio", "seconds", "seed", "name")
SEPARATOR = "@@"


class ListError(UserError, ValueError):
    """The list file as a whole cannot be read."""


@dataclass(frozen=True)
class Sample:
    """One line of a list: `name` of its video; `error` is why it has no request."""

    name: str
    request: Request = Request()
    seed: int | None = None
    error: str = ""


def read_samples(path: Path, seconds: float = 0.0) -> list[Sample]:
    """The samples of a .txt, .csv or .jsonl file, in order; those without audio last `seconds`.

    Paths are relative to the working folder, then to the folder of the list. Raises FileNotFoundError, ListError.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no list at {path}; give a .txt, .csv or .jsonl file of samples.")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows}
    rows = list(kinds.get(path.suffix.lower(), _marked_rows)(path, text))
    if not rows:
        example = SEPARATOR.join(("prompt", "image", "audio"))
        raise ListError(f"{path} contains no samples; expected one per line, such as {example}.")
    samples = [_sample(number, row, path.parent, seconds) for number, row in enumerate(rows)]
    names = [sample.name for sample in samples]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ListError(f"{path} has more than one sample with the name '{twice}'; names must differ.")
    return samples


def _marked_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(SEPARATOR)]
        if len(fields) > 3:
            yield {"error": f"{len(fields)} fields; expected prompt{SEPARATOR}image{SEPARATOR}audio at most"}
        elif line.strip():
            yield dict(zip(COLUMNS, fields, strict=False))


def _csv_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    unknown = sorted(set(reader.fieldnames or ()) - set(COLUMNS))
    if unknown or not reader.fieldnames:
        raise ListError(f"{path} has the column {unknown[:1]}; expected a header of {', '.join(COLUMNS)}.")
    for row in reader:
        yield row if None not in row else {"error": f"{len(row[None])} fields more than the header has"}


def _json_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = {"error": f"not valid JSON ({error})"}
        if not isinstance(row, dict):
            row = {"error": f"{line[:40]} is not an object with keys of {', '.join(COLUMNS)}"}
        unknown = sorted(set(row) - {*COLUMNS, "error"})
        yield {"error": f"key '{unknown[0]}' is not known; the keys are {', '.join(COLUMNS)}"} if unknown else row


def _sample(number: int, row: Mapping[str, Any], folder: Path, seconds: float) -> Sample:
    values = {name: str(value).strip() for name, value in row.items() if value is not None and str(value).strip()}
    image, audio = (_find(values.get(kind, ""), folder) for kind in ("image", "audio"))
    label = image.stem if image else values.get("prompt", "")
    name = _file_name(values.get("name", "")) or f"{number:03d}_{_file_name(label)}"
    if "error" in values:
        return Sample(f"{number:03d}", error=values["error"])
    try:
        length = float(values["seconds"]) if "seconds" in values else 0.0 if audio else seconds
        seed = int(values["seed"]) if "seed" in values else None
    except ValueError:
        numbers = {key: values[key] for key in ("seconds", "seed") if key in values}
        return Sample(name, error=f"{numbers}; expected a number of seconds and a whole number as seed")
    if not math.isfinite(length):
        return Sample(name, error=f"seconds is {length}; expected a finite number")
    return Sample(name, Request(image, audio, values.get("prompt", ""), length), seed)


def _find(name: str, folder: Path) -> Path | None:
    if not name:
        return None
    return Path(name) if Path(name).exists() or not (folder / name).exists() else folder / name


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")[:40]
