"""Test sets as lists of clips with a hash, so that a number says which clips it rests on.

`avspeech_semi` is drawn from the kept semi-body clips of a run, by video; `avspeech_face` shows the same clips cropped
to the face; `hdtf100` and `hdtf400_15s` are the two sets that go by HDTF's name; `small_world` are the drawn clips held
out. The rule in a list changes when the same input would give another set.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import cv2
import numpy as np

from common.clips import stream_clips
from common.errors import InputError, MissingFileError
from common.runs import RunFolder, atomic_write
from common.untrusted.lists import ListError, csv_rows, open_list, parse_json
from curation.decide.split import HeldOut, draw_split
from curation.sources.hdtf import HdtfSet, list_hdtf_set

Row = Mapping[str, Any]
AvspeechSet = Literal["avspeech_semi", "avspeech_face"]
SET_NAMES = ("small_world", *get_args(AvspeechSet), *get_args(HdtfSet))
LISTS = Path(__file__).parents[1] / "lists"
# The list that the clips of a folder, or the videos of a run, are of.
TEST_SET_FILE = "test_set.csv"
FACE_SIDE, FACE_MARGIN = 512, 1.6
# The set that names the face crops, and the version of `face_square`.
FACE_RULE = f"square of {FACE_MARGIN} face boxes, still, {FACE_SIDE} px, v1"
WHOLE_RULE = "whole picture, v1"
HDTF_RULE = "crop of HDTF, v1"
# Clip ids become file names, also those that `generate` writes for a list of samples.
CLIP_ID = re.compile(r"[A-Za-z0-9-]([\w.-]{0,38}[A-Za-z0-9-])?", re.ASCII)
# Columns of a clip table that the small world's set depends on.
DRAWN_FROM = ("clip_id", "video_id", "t_start", "t_end", "decision", "split")


@dataclass(frozen=True, order=True)
class TestClip:
    """One clip: its id, its video, and where it lies in it, seconds."""

    __test__ = False  # to pytest its name looks like a test's

    clip_id: str
    video_id: str
    start: float
    end: float


@dataclass(frozen=True)
class TestSet:
    """A named list of clips, the rule by which they are shown and the seed by which they were drawn."""

    __test__ = False

    name: str
    rule: str
    seed: int
    clips: tuple[TestClip, ...]

    @property
    def sha256(self) -> str:
        """Hash of name, rule, seed and clips; results on sets of different hashes do not share a column."""
        about = json.dumps([self.name, self.rule, self.seed, _table(self.clips)])
        return hashlib.sha256(about.encode()).hexdigest()


def draw_set(name: str, run: RunFolder | None, files: Path | None, count: int = 100, seed: int = 0) -> TestSet:
    """The set of this name (`SET_NAMES`): those of HDTF from the folder `files`, the others from the clips of `run`.

    `count` is for the AVSpeech sets; `seed` for them and `hdtf100`. Raises ListError for another name and for a missing
    `run` or `files`, FileNotFoundError, and what drawing it raises.
    """
    if name not in SET_NAMES:
        raise ListError(f"There is no test set '{name}'; the sets are {', '.join(SET_NAMES)}.")
    if name in get_args(HdtfSet):
        if files is None:
            raise ListError(f"{name} is drawn from HDTF's text files; say where they lie, with --files FOLDER.")
        return hdtf_set(cast(HdtfSet, name), files, seed)
    if run is None:
        raise ListError(f"{name} is drawn from the clip table of a curated run; say which, with --run RUN.")
    if name == "small_world":
        return small_world_set(list(stream_clips(run.clips_parquet, DRAWN_FROM)))
    return avspeech_set(cast(AvspeechSet, name), run.clips_parquet, count, seed)


def avspeech_set(name: AvspeechSet, table: Path, count: int = 100, seed: int = 0) -> TestSet:
    """`count` kept semi-body clips, no two of one video or of linked videos, of a clip table.

    Both names give the same clips. Raises FileNotFoundError, and ValueError when there are not enough.
    """
    clips = tuple(TestClip(*clip) for clip in draw_split(table, count, seed, of="framing = 'semi'").clips)
    return TestSet(name, FACE_RULE if name == "avspeech_face" else WHOLE_RULE, seed, clips)


def hdtf_set(name: HdtfSet, folder: Path, seed: int = 0) -> TestSet:
    """One of HDTF's sets from a folder of its files. Raises what `list_hdtf_set` raises."""
    spans = [(row["unit"], segment) for row in list_hdtf_set(name, folder, seed) for segment in row["segments"]]
    clips = (TestClip(each["name"], video, each["start"], each["end"]) for video, each in spans)
    return TestSet(name, HDTF_RULE, seed if name == "hdtf100" else 0, tuple(sorted(clips)))


def small_world_set(rows: Sequence[Row]) -> TestSet:
    """The kept drawn clips of the test split. Raises ValueError without any."""
    kept = [row for row in rows if row["decision"] == "kept" and row["split"] == "test"]
    if not kept:
        raise InputError(f"None of {len(rows)} clips is kept and of the test split; curate the small world first.")
    clips = (TestClip(row["clip_id"], row["video_id"], row["t_start"], row["t_end"]) for row in kept)
    return TestSet("small_world", WHOLE_RULE, 0, tuple(sorted(clips)))


def held_out(chosen: TestSet) -> HeldOut:
    """The set as a split by video, which `curation.test_list` keeps out of training together with its duplicates."""
    return HeldOut("video", chosen.seed, tuple((c.clip_id, c.video_id, c.start, c.end) for c in chosen.clips))


def face_square(boxes: np.ndarray, height: int, width: int) -> tuple[int, int, int]:
    """x, y and side (px) of the square in an image that shows a face with boxes (T, 4) x0, y0, x1, y1 px.

    One square for the whole clip, so that the head moves and not the crop: centred on the median box, 1.6 times as wide
    as its larger side, moved inside the image and no larger than it.
    """
    x0, y0, x1, y1 = np.median(np.asarray(boxes, np.float64), axis=0)
    size = min(round(FACE_MARGIN * max(x1 - x0, y1 - y0)), height, width)
    x = int(np.clip(round((x0 + x1 - size) / 2), 0, width - size))
    y = int(np.clip(round((y0 + y1 - size) / 2), 0, height - size))
    return x, y, size


def crop_face(frame: np.ndarray, square: tuple[int, int, int], side: int = FACE_SIDE) -> np.ndarray:
    """The square (x, y, size) of a frame (H, W, 3) uint8, scaled to (side, side, 3)."""
    x, y, size = square
    method = cv2.INTER_AREA if size > side else cv2.INTER_CUBIC
    return cv2.resize(frame[y : y + size, x : x + size], (side, side), interpolation=method)


def write_test_set(path: Path, chosen: TestSet) -> None:
    """Write a set as CSV under one comment line with its name, rule, seed and hash. Raises DiskFullError."""
    about = {"name": chosen.name, "rule": chosen.rule, "seed": chosen.seed, "sha256": chosen.sha256}
    with atomic_write(path) as temporary:
        temporary.write_text(f"# {json.dumps(about)}\n{_table(chosen.clips)}", "utf-8")


def find_list(name: str) -> Path:
    """The file of a list: a path, or the name of one that is published with this package. Raises FileNotFoundError."""
    path = next((path for path in (Path(name), LISTS / f"{name}.csv") if path.is_file()), None)
    if path is None:
        published = ", ".join(sorted(file.stem for file in LISTS.glob("*.csv")))
        raise MissingFileError(f"There is no list at {name}; give a file of `eval sets`, or the name of {published}.")
    return path


def read_test_set(path: Path) -> TestSet:
    """Read what `write_test_set` wrote. Raises FileNotFoundError, and ListError where a line or the hash is wrong."""
    try:
        with open_list(path, newline="") as file:
            about = parse_json(file.readline().removeprefix("# "))
            rows = list(csv_rows(path, file, [field.name for field in fields(TestClip)]))
        if bad := next((row for row in rows if row.error), None):
            raise ValueError(f"row {bad.number}: {bad.error}")
        lines = (row.values for row in rows)
        clips = [TestClip(r["clip_id"], r["video_id"], float(r["start"]), float(r["end"])) for r in lines]
        wrong = next((clip.clip_id for clip in clips if not CLIP_ID.fullmatch(clip.clip_id)), None)
        if wrong is not None:
            raise ValueError(f"clip id {wrong!r} is not 1 to 40 letters, digits and - . _")
        test_set, expected = TestSet(about["name"], about["rule"], about["seed"], tuple(clips)), str(about["sha256"])
    except ListError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ListError(
            f"{path} is no list of a test set ({error}); expected one that `write_test_set` made."
        ) from error
    if test_set.sha256 != expected:
        raise ListError(
            f"{path} says its hash is {expected[:12]} and it is {test_set.sha256[:12]}; fetch the list again."
        )
    return test_set


def _table(clips: Sequence[TestClip]) -> str:
    names = [field.name for field in fields(TestClip)]
    rows = [(c.clip_id, c.video_id, f"{c.start:.3f}", f"{c.end:.3f}") for c in clips]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue()
