"""Videos that another system made, as a run folder that can be judged: a list in, a manifest out.

The list is CSV or JSON lines with `method`, `clip_id` and `video`, and where there are any `reference` (the real
video), `audio`, `image` (the input picture), `group` (video or speaker) and `seed`; paths are relative to the list.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.runs import RunFolder, atomic_write
from eval.job import OPTIONAL_COLUMNS, ManifestError
from eval.study import TRUTH

REQUIRED = ("method", "clip_id", "video")
PATHS = ("video", "reference", "audio", "image")
COLUMNS = (*REQUIRED, "reference", "audio", "seed", *OPTIONAL_COLUMNS)


def import_videos(path: Path, run: RunFolder) -> dict[str, int]:
    """Write `videos/manifest.parquet` of `run` from a list; method -> number of videos.

    The real videos come in as the method `ground_truth`, which is the ceiling of every metric. Raises ManifestError for
    a line that lacks something or names a real video, sound or picture that is not there; a missing `video` is the
    failure of its method, and judged as one.
    """
    rows = [_row(path, number, line) for number, line in enumerate(_lines(path), 1)]
    if not rows:
        raise ManifestError(f"{path} lists no video; give one line for each, with {', '.join(REQUIRED)}.")
    if TRUTH not in {row["method"] for row in rows}:
        real = {row["clip_id"]: row for row in rows if row["reference"]}
        rows += [row | {"method": TRUTH, "video": row["reference"], "seed": 0} for row in real.values()]
    with atomic_write(run.videos / "manifest.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    methods = [row["method"] for row in rows]
    return {method: methods.count(method) for method in dict.fromkeys(methods)}


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path} is neither CSV nor JSON lines ({error}); name it .csv or .jsonl.") from error
    if not all(isinstance(each, dict) for each in found):
        raise ManifestError(f"{path} holds a line that is not a JSON object; expected one for each video.")
    return found


def _row(path: Path, number: int, line: Mapping[str, Any]) -> dict[str, Any]:
    unknown, missing = sorted(set(map(str, line)) - set(COLUMNS)), [name for name in REQUIRED if not line.get(name)]
    if unknown or missing:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown column {unknown[0]}"
        raise ManifestError(f"Video {number} of {path} {wrong}; the columns are {', '.join(COLUMNS)}.")
    row = {name: str(line.get(name) or "") for name in COLUMNS}
    for name in PATHS:
        row[name] = str((path.parent / row[name]).resolve()) if row[name] else ""
        if name != "video" and row[name] and not Path(row[name]).is_file():
            raise ManifestError(f"Video {number} of {path}: {name} {row[name]} does not exist; correct the list.")
    try:
        return row | {"seed": int(row["seed"] or 0)}
    except ValueError:
        raise ManifestError(f"Video {number} of {path}: seed is {row['seed']!r}; expected a whole number.") from None
