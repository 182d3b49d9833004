"""AVSpeech lists: millions of spans of a few hundred thousand YouTube videos, grouped by video.

The files have no header. Columns (arXiv:1804.03619): YouTube id, start and end in seconds, and the centre of the
speaker's face as fractions of the frame.
"""

import logging
from pathlib import Path
from typing import Any

from common.errors import MissingFileError
from common.untrusted.lists import text_lines
from curation.sources.remote import WATCH, YOUTUBE_ID, Row, SourcesError, refused_row, remote_row

logger = logging.getLogger(__name__)

COLUMNS = "id, start, end, x, y"
# With a larger share of malformed rows, the file is not an AVSpeech list.
FOREIGN_SHARE = 0.5


def list_avspeech(file: Path, source: str = "") -> list[Row]:
    """One row per video in order of first appearance, with all its segments; then one row per malformed line.

    `source` defaults to avspeech_test for a file with "test" in its name, else avspeech_train. Raises
    FileNotFoundError, and SourcesError when the file holds no such list.
    """
    if not file.is_file():
        raise MissingFileError(f"The AVSpeech list {file} does not exist; set sources.path to avspeech_train.csv.")
    source = source or ("avspeech_test" if "test" in file.stem else "avspeech_train")
    videos, malformed, count = _read(file)
    if not videos or len(malformed) > FOREIGN_SHARE * count:
        found = f"its first malformed line is {malformed[0][1]!r}" if malformed else "it is empty"
        raise SourcesError(f"{file} is no AVSpeech list ({found}); expected rows of {COLUMNS} without a header.")
    if malformed:
        named = ", ".join(str(number) for number, _ in malformed[:5])
        logger.warning("%s: %d of %d rows are malformed (line %s ...)", file, len(malformed), count, named)
    rows = [remote_row(name, WATCH + name, source, segments) for name, segments in videos.items()]
    return rows + [_refused(file, source, number, line) for number, line in malformed]


def _read(file: Path) -> tuple[dict[str, list[dict[str, Any]]], list[tuple[int, str]], int]:
    """Segments by video id, the malformed lines with their numbers (from 1), and the count of lines with content."""
    videos: dict[str, list[dict[str, Any]]] = {}
    malformed: list[tuple[int, str]] = []
    count = 0
    # An undecodable byte invalidates its own row only.
    for number, line in text_lines(file, errors="replace"):
        segment = _segment(line, count)
        name = line.partition(",")[0].strip()
        if segment is None or (name not in videos and not YOUTUBE_ID.fullmatch(name)):
            malformed.append((number, line[:200]))
        else:
            videos.setdefault(name, []).append(segment)
        count += 1
    return videos, malformed, count


def _segment(line: str, row_index: int) -> dict[str, Any] | None:
    try:
        _, start, end, x, y = map(float, ("0" + line[line.index(",") :]).split(","))
    except ValueError:
        return None
    # Written so that NaN fails too.
    if not (0 <= start < end < float("inf") and 0 <= x <= 1 and 0 <= y <= 1):
        return None
    return {"row_index": row_index, "start": start, "end": end, "x": x, "y": y}


def _refused(file: Path, source: str, number: int, line: str) -> Row:
    message = f"Line {number} of {file.name} is {line!r}; expected {COLUMNS} with 0 <= start < end and x, y in 0..1."
    return refused_row(f"{file.name}:{number}", source, "malformed_row", message)
