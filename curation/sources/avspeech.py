"""AVSpeech lists: millions of spans of a few hundred thousand YouTube videos, grouped by video.

The files have no header. Columns (arXiv:1804.03619): YouTube id, start and end in seconds, and the centre of the
speaker's face as fractions of the frame.
"""

import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from common.errors import MissingFileError
from common.untrusted.lists import text_lines
from curation.sources.remote import WATCH, YOUTUBE_ID, Row, SourcesError, refused_row, remote_row

logger = logging.getLogger(__name__)

COLUMNS = "id, start, end, x, y"
FIELDS = ("start", "end", "x", "y")
# With a larger share of malformed rows, the file is not an AVSpeech list.
FOREIGN_SHARE = 0.5


@dataclass
class _Spans:
    """The rows of a list, 48 bytes each: `video` is the place of the id in `names`, which are by first appearance."""

    names: dict[str, int] = field(default_factory=dict)
    video: array = field(default_factory=lambda: array("q"))
    row_index: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))  # start, end, x, y of each row
    malformed: array = field(default_factory=lambda: array("q"))  # numbers of lines, from 1
    first_malformed: str = ""
    count: int = 0  # of lines with content


def list_avspeech(file: Path, source: str = "") -> Iterator[Row]:
    """One row per video in order of first appearance, with all its segments; then one row per malformed line.

    The file is read before the first row is asked for. `source` defaults to avspeech_test for a file with "test" in its
    name, else avspeech_train. Raises FileNotFoundError, and SourcesError when the file holds no such list.
    """
    if not file.is_file():
        raise MissingFileError(f"The AVSpeech list {file} does not exist; set sources.path to avspeech_train.csv.")
    source = source or ("avspeech_test" if "test" in file.stem else "avspeech_train")
    spans = _read(file)
    if not spans.names or len(spans.malformed) > FOREIGN_SHARE * spans.count:
        found = f"its first malformed line is {spans.first_malformed!r}" if spans.malformed else "it is empty"
        raise SourcesError(f"{file} is no AVSpeech list ({found}); expected rows of {COLUMNS} without a header.")
    if spans.malformed:
        named = ", ".join(str(number) for number in spans.malformed[:5])
        logger.warning("%s: %d of %d rows are malformed (line %s ...)", file, len(spans.malformed), spans.count, named)
    return chain(_videos(spans, source), _malformed(file, source, spans.malformed))


def _read(file: Path) -> _Spans:
    spans = _Spans()
    # An undecodable byte invalidates its own row only.
    for number, line in text_lines(file, errors="replace"):
        values, name = _values(line), line.partition(",")[0].strip()
        if values is None or (name not in spans.names and not YOUTUBE_ID.fullmatch(name)):
            spans.first_malformed = spans.first_malformed or line[:200]
            spans.malformed.append(number)
        else:
            spans.video.append(spans.names.setdefault(name, len(spans.names)))
            spans.row_index.append(spans.count)
            spans.values.extend(values)
        spans.count += 1
    return spans


def _videos(spans: _Spans, source: str) -> Iterator[Row]:
    video, values = np.frombuffer(spans.video, np.int64), np.frombuffer(spans.values).reshape(-1, 4)
    order = np.argsort(video, kind="stable")
    ends = np.cumsum(np.bincount(video)).tolist()
    for name, begin, end in zip(spans.names, [0, *ends], ends, strict=False):
        segments = [
            {"row_index": spans.row_index[place]} | dict(zip(FIELDS, values[place].tolist(), strict=True))
            for place in order[begin:end].tolist()
        ]
        yield remote_row(name, WATCH + name, source, segments)


def _malformed(file: Path, source: str, numbers: array) -> Iterator[Row]:
    """A refused row for each of these lines, in their order, read once more."""
    remaining = iter(numbers)
    refused = next(remaining, None)
    for number, line in text_lines(file, errors="replace") if refused is not None else ():
        if number == refused:
            yield _refused(file, source, number, line[:200])
            refused = next(remaining, None)


def _values(line: str) -> tuple[float, float, float, float] | None:
    """Start, end, x and y of a row; None for one that is malformed."""
    try:
        _, start, end, x, y = map(float, ("0" + line[line.index(",") :]).split(","))
    except ValueError:
        return None
    # Written so that NaN fails too.
    if not (0 <= start < end < float("inf") and 0 <= x <= 1 and 0 <= y <= 1):
        return None
    return start, end, x, y


def _refused(file: Path, source: str, number: int, line: str) -> Row:
    message = f"Line {number} of {file.name} is {line!r}; expected {COLUMNS} with 0 <= start < end and x, y in 0..1."
    return refused_row(f"{file.name}:{number}", source, "malformed_row", message)
