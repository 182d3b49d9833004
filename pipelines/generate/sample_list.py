"""List files of samples: the released code's `prompt@@image@@audio` lines, CSV with a header, JSON lines or an array.

A line that cannot be used becomes a sample with an error; the others are not affected.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.untrusted.lists import JSON_SUFFIXES, TABLE_SUFFIXES, ListError, ListRow, read_table, text_lines, text_value
from omniavatar.config import Request

COLUMNS = ("prompt", "image", "audio", "seconds", "seed", "name")
SEPARATOR = "@@"


LONGEST_NAME = 40  # characters of a video's name


@dataclass(frozen=True)
class Sample:
    """One line of a list: `name` of its video; `error` is why it has no request."""

    name: str
    request: Request = Request()
    seed: int | None = None
    error: str = ""


def read_samples(path: Path, seconds: float = 0.0) -> list[Sample]:
    """The samples of a list, in order; those without audio last `seconds`. The suffix, in any case, says what it is:
    .csv or .tsv, .jsonl or .json; anything else is lines of `prompt@@image@@audio`.

    Paths are relative to the working folder, then to the folder of the list. Raises FileNotFoundError, ListError.
    """
    is_table = path.suffix.lower() in (*TABLE_SUFFIXES, *JSON_SUFFIXES)
    rows = enumerate(read_table(path, COLUMNS) if is_table else _marked_rows(path))
    samples = [_sample(number, row, path.parent, seconds) for number, row in rows]
    if not samples:
        example = SEPARATOR.join(("prompt", "image", "audio"))
        raise ListError(f"{path} contains no samples; expected one per line, such as {example}.")
    twice = next((name for name, count in Counter(sample.name for sample in samples).items() if count > 1), None)
    if twice is not None:
        raise ListError(
            f"{path} has more than one sample with the name '{twice}'; names must differ, also "
            "where characters that a file name cannot have are left out."
        )
    return samples


def _marked_rows(path: Path) -> Iterator[ListRow]:
    for number, line in text_lines(path):
        fields = [field.strip() for field in line.split(SEPARATOR)]
        if len(fields) > 3:
            yield ListRow(number, {}, f"{len(fields)} fields; expected prompt{SEPARATOR}image{SEPARATOR}audio at most")
        else:
            yield ListRow(number, dict(zip(COLUMNS, fields, strict=False)))


def _sample(number: int, row: ListRow, folder: Path, seconds: float) -> Sample:
    values, wrong = {}, row.error
    for name, value in row.values.items():
        text = text_value(value)
        if text is None:
            wrong = wrong or f"{name} is no text but a {type(value).__name__}"
        elif text:
            values[name] = text
    if wrong:
        return Sample(f"{number:03d}", error=f"line {row.number}: {wrong}")
    image, audio = (_find(values.get(kind, ""), folder) for kind in ("image", "audio"))
    label = image.stem if image else values.get("prompt", "")
    name = _file_name(values.get("name", "")) or f"{number:03d}_{_cleaned(label)[:LONGEST_NAME]}"
    try:
        length = float(values["seconds"]) if "seconds" in values else 0.0 if audio else seconds
        seed = int(values["seed"]) if "seed" in values else None
    except ValueError:
        numbers = {key: values[key][:40] for key in ("seconds", "seed") if key in values}
        return Sample(name, error=f"{numbers}; expected a number of seconds and a whole number as seed")
    if not math.isfinite(length):
        return Sample(name, error=f"seconds is {length}; expected a finite number")
    return Sample(name, Request(image, audio, values.get("prompt", ""), length), seed)


def _find(name: str, folder: Path) -> Path | None:
    if not name:
        return None
    try:
        return Path(name) if Path(name).exists() or not (folder / name).exists() else folder / name
    except (OSError, ValueError):  # longer than a name of a file can be, or with a NUL in it
        return Path(name)


def _file_name(name: str) -> str:
    """A name as the name of a file. One that is too long ends in its hash: names may differ in their last letters."""
    text = _cleaned(name)
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _cleaned(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")
