"""Import of another system's videos into a run folder: a list in, a manifest out.

The list is CSV, JSON lines or a JSON array with `method`, `clip_id` and `video`, and where there are any `reference`
(the real video), `audio`, `image` (the input picture), `group` (video or speaker), `role`, of an avatar `motion`,
`motion_reference`, `turned` (see `eval.manifest`), and `seed`; paths are relative to the list.
A list without `method` and `video`, such as `clips.csv` of a test set's inputs, is combined with the folders in which
methods have written their `<clip_id>.mp4`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.runs import RunFolder, atomic_write
from common.untrusted.lists import ListError, ListRow, read_table, text_value
from eval.manifest import OPTIONAL_COLUMNS, TRUTH, ManifestError
from eval.sets.catalog import TEST_SET_FILE, read_test_set, write_test_set

REQUIRED = ("method", "clip_id", "video")
PATHS = ("video", "reference", "audio", "image", "motion", "motion_reference", "turned")
COLUMNS = (*REQUIRED, "reference", "audio", "seed", "role", *OPTIONAL_COLUMNS)


def import_videos(path: Path, run: RunFolder, folders: Mapping[str, Path] | None = None) -> dict[str, int]:
    """Write `videos/manifest.parquet` of `run` from a list; method -> number of videos.

    `folders`: method -> folder with its `<clip_id>.mp4`, for a list without methods and videos. A `test_set.csv` beside
    the list goes with it, for the result card. The real videos come in as the method `ground_truth`, which is the
    ceiling of every metric. Raises ManifestError for a line with a missing field or with a real video, audio
    or image that does not exist, and for a folder without any of the videos; a missing `video` counts as a failure of
    its method. Raises ListError for an invalid `test_set.csv`.
    """
    lines = _lines(path)
    if folders:
        lines = [line for method, folder in folders.items() for line in _of_method(path, lines, method, folder)]
    rows = [_row(path, number, line.values) for number, line in enumerate(lines, 1)]
    if not rows:
        raise ManifestError(f"{path} lists no video; give one line for each, with {', '.join(REQUIRED)}.")
    if TRUTH not in {row["method"] for row in rows}:
        real = {row["clip_id"]: row for row in rows if row["reference"]}
        rows += [row | {"method": TRUTH, "video": row["reference"], "seed": 0} for row in real.values()]
    with atomic_write(run.videos / "manifest.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    _take_test_set(path.parent / TEST_SET_FILE, Path(run.root) / TEST_SET_FILE)
    methods = [row["method"] for row in rows]
    return {method: methods.count(method) for method in dict.fromkeys(methods)}


def _of_method(path: Path, lines: list[ListRow], method: str, folder: Path) -> list[ListRow]:
    """The lines with this method and its videos in them."""
    column = next((name for line in lines for name in ("method", "video") if line.values.get(name)), None)
    if column:
        raise ManifestError(
            f"{path} has a {column} in its lines already; import it without naming the folder {folder}."
        )
    videos = [str((folder / f"{line.values.get('clip_id')}.mp4").resolve()) for line in lines]
    if not any(Path(video).is_file() for video in videos):
        raise ManifestError(f"{folder} has none of the {len(videos)} videos of {method}; expected <clip_id>.mp4 in it.")
    return [
        line._replace(values=line.values | {"method": method, "video": video})
        for line, video in zip(lines, videos, strict=True)
    ]


def _take_test_set(source: Path, target: Path) -> None:
    if source.is_file():
        write_test_set(target, read_test_set(source))
    else:
        target.unlink(missing_ok=True)  # that of an earlier import


def _lines(path: Path) -> list[ListRow]:
    if not path.is_file():
        raise ManifestError(f"{path} does not exist; give a list of videos as CSV or JSON lines.")
    try:
        lines = list(read_table(path))
    except ListError as error:
        raise ManifestError(str(error)) from error
    if wrong := next((line for line in lines if line.error), None):
        raise ManifestError(
            f"{path} is neither CSV nor JSON lines with one object for each video "
            f"(line {wrong.number}: {wrong.error}); correct it, and name it .csv or .jsonl."
        )
    return lines


def _row(path: Path, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    unknown, missing = sorted(set(values) - set(COLUMNS)), [name for name in REQUIRED if not values.get(name)]
    if unknown or missing:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown column {unknown[0]}"
        raise ManifestError(f"Video {number} of {path} {wrong}; the columns are {', '.join(COLUMNS)}.")
    texts = {name: text_value(values.get(name)) for name in COLUMNS}
    if odd := next((name for name, text in texts.items() if text is None or "\0" in text), None):
        kind = type(values[odd]).__name__
        raise ManifestError(f"Video {number} of {path}: {odd} is a {kind} with no text for a table; correct the list.")
    row: dict[str, Any] = {name: text or "" for name, text in texts.items()}
    for name in PATHS:
        row[name] = str((path.parent / row[name]).resolve()) if row[name] else ""
        if name != "video" and row[name] and not Path(row[name]).is_file():
            raise ManifestError(f"Video {number} of {path}: {name} {row[name]} does not exist; correct the list.")
    try:
        return row | {"seed": int(row["seed"] or 0)}
    except ValueError:
        raise ManifestError(
            f"Video {number} of {path}: seed is {row['seed'][:40]!r}; expected a whole number."
        ) from None
