"""Lists that people and programs write: lines of text, CSV, JSON lines and JSON arrays; one reader for all of them.

UTF-8 with or without a byte-order mark, whatever the line ends; U+2028 and U+0085 inside a string end no line. Every
row comes with its number, so that what is wrong can be named.
"""

import csv
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from common.errors import MissingFileError, UserError

BLANKS = " \t\r\n\ufeff"  # around a line; a mark may come again where files were joined
LARGEST_FIELD = 2**31 - 1  # characters of a CSV field; the library's own limit is 128 kB
DELIMITERS = (",", ";", "\t")  # of CSV, as the programs of several countries write it
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")


class ListError(UserError, ValueError):
    """A list file as a whole cannot be read."""


class ListRow(NamedTuple):
    """One row: its line in the file (of an array: its place, from 1), and its values or why it has none."""

    number: int
    values: dict[str, Any]
    error: str = ""


@contextmanager
def open_list(path: Path, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file of UTF-8. Raises MissingFileError; ListError for another encoding, also while it is read."""
    if not path.is_file():
        raise MissingFileError(f"There is no list at {path}; give the path of an existing file.")
    with open(path, "rb") as raw:
        head = raw.read(64)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise ListError(f"{path} is not UTF-8 text, it looks like UTF-16 or binary data; save it as UTF-8.")
    try:
        with open(path, encoding="utf-8-sig", newline=newline, errors=errors) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error


def text_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that has content, without the blanks around it. Raises as `open_list`."""
    with open_list(path, errors=errors) as file:
        for number, line in enumerate(file, 1):
            if text := line.strip(BLANKS):
                yield number, text


def read_table(path: Path, columns: Collection[str] = ()) -> Iterator[ListRow]:
    """The rows of a CSV file with a header (by its suffix, in any case), else of JSON lines or a JSON array of objects.

    `columns`: all that are allowed, any when empty. Values of CSV are text without the blanks around it, "" where there
    is none. Raises as `open_list`, and ListError for a file of another form; a row of another form has an error.
    """
    if path.suffix.lower() in TABLE_SUFFIXES:
        with open_list(path, newline="") as file:
            yield from csv_rows(path, file, columns)
        return
    for row in _json_rows(path):
        unknown = sorted(set(row.values) - set(columns)) if columns else []
        wrong = f"key '{unknown[0]}' is not known; the keys are {', '.join(columns)}" if unknown else ""
        yield row if not wrong else ListRow(row.number, {}, wrong)


def csv_rows(path: Path, file: TextIO, columns: Collection[str] = ()) -> Iterator[ListRow]:
    """The rows of an open CSV file from here on; see `read_table`. Open it with newline="". Raises ListError."""
    csv.field_size_limit(LARGEST_FIELD)
    before, head = next(((count, line) for count, line in enumerate(file) if line.strip(BLANKS)), (0, ""))
    delimiter = max(DELIMITERS, key=head.count)
    reader = csv.reader(
        chain([head.lstrip("\ufeff")], file), delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True
    )
    try:
        names = [name.strip() for name in next(reader, [])]
        while names and not names[-1]:  # of commas that a spreadsheet adds
            names.pop()
        unknown = [name for name in names if name not in columns] if columns else []
        if unknown or not names:
            expected = f"expected a header of {', '.join(columns) or 'names'}"
            raise ListError(f"{path} has the column {unknown[:1]}; {expected}.")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ListError(f"{path} has the column '{twice[0]}' more than once; columns must differ.")
        for fields in reader:
            values = [field.strip() for field in fields]
            extra = [value for value in values[len(names) :] if value]
            if extra:
                yield ListRow(before + reader.line_num, {}, f"{len(extra)} fields more than the header has")
            elif any(values):
                padded = values + [""] * (len(names) - len(values))
                yield ListRow(before + reader.line_num, dict(zip(names, padded, strict=False)))
    except csv.Error as error:
        raise ListError(f"{path}, line {before + reader.line_num}: {error}; check the quotes up to here.") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text of unknown origin. Raises ValueError for a text that is none, that is nested too deeply,
    or that holds half a surrogate pair, which no file can store."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _json_rows(path: Path) -> Iterator[ListRow]:
    if path.suffix.lower() == ".json":
        with open_list(path) as file:
            text = file.read().strip(BLANKS)
        try:
            whole = parse_json(text)
        except ValueError as error:
            if text.startswith("["):
                raise ListError(f"{path} is not valid JSON ({error}); correct it.") from error
        else:  # one object, perhaps over several lines, is a list of one
            yield from (_object(*item) for item in enumerate(whole if isinstance(whole, list) else [whole], 1))
            return
    for number, line in text_lines(path):
        try:
            yield _object(number, parse_json(line))
        except ValueError as error:
            yield ListRow(number, {}, f"not valid JSON ({error})")


def _object(number: int, value: Any) -> ListRow:
    if isinstance(value, dict):
        return ListRow(number, value)
    return ListRow(number, {}, f"a {type(value).__name__} is not a JSON object with a key for each value")


def text_value(value: Any) -> str | None:
    """A value of a row as text without the blanks around it: "" for none, None for what no CSV could hold."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip()
