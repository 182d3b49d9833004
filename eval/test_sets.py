"""The sets that methods are judged on, as lists with a hash: no published number says which clips it rests on.

`avspeech_semi` is drawn from the kept semi-body clips of a run, by video; `avspeech_face` shows the same clips cropped
to the face; `hdtf100` and `hdtf400_15s` are the two sets that go by HDTF's name; `small_world` are the drawn clips held
out. The rule in a list changes whenever the same input would give another set.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from common.runs import atomic_write
from curation.hdtf_sets import HdtfSet, list_hdtf_set
from curation.split import draw_split

Row = Mapping[str, Any]
FACE_SIDE, FACE_MARGIN = 512, 1.6
# The set that names the face crops, and the version of `face_crops`.
FACE_RULE = f"square of {FACE_MARGIN} face boxes, still, {FACE_SIDE} px, v1"
WHOLE_RULE = "whole picture, v1"


class ListError(ValueError):
    """A file is no list of a test set, or not the one it says it is."""


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
        """Of all that makes the set what it is; results on sets of different hashes do not share a column."""
        about = json.dumps([self.name, self.rule, self.seed, _table(self.clips)])
        return hashlib.sha256(about.encode()).hexdigest()


def avspeech_set(
    name: Literal["avspeech_semi", "avspeech_face"], rows: Sequence[Row], count: int = 100, seed: int = 0
) -> TestSet:
    """`count` kept semi-body clips, no two of one video or of linked videos, from all `rows` of a clip table.

    Both names give the same clips. Raises ValueError when there are not enough.
    """
    # Refused clips stay in the table: they tell which videos show the same.
    semi = [{**row, "decision": row["decision"] if row["framing"] == "semi" else "rejected"} for row in rows]
    clips = tuple(TestClip(*clip) for clip in draw_split(semi, count, seed).clips)
    return TestSet(name, FACE_RULE if name == "avspeech_face" else WHOLE_RULE, seed, clips)


def hdtf_set(name: HdtfSet, folder: Path, seed: int = 0) -> TestSet:
    """One of HDTF's sets from a folder of its files. Raises what `list_hdtf_set` raises."""
    spans = [(row["unit"], segment) for row in list_hdtf_set(name, folder, seed) for segment in row["segments"]]
    clips = (TestClip(each["name"], video, each["start"], each["end"]) for video, each in spans)
    return TestSet(name, "crop of HDTF, v1", seed if name == "hdtf100" else 0, tuple(sorted(clips)))


def small_world_set(rows: Sequence[Row]) -> TestSet:
    """The kept drawn clips of the test split. Raises ValueError without any."""
    kept = [row for row in rows if row["decision"] == "kept" and row["split"] == "test"]
    if not kept:
        raise ValueError(f"None of {len(rows)} clips is kept and of the test split; curate the small world first.")
    clips = (TestClip(row["clip_id"], row["video_id"], row["t_start"], row["t_end"]) for row in kept)
    return TestSet("small_world", WHOLE_RULE, 0, tuple(sorted(clips)))


def face_crops(frames: np.ndarray, boxes: np.ndarray, side: int = FACE_SIDE) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 around the face with boxes (T, 4) x0, y0, x1, y1 px -> (T, side, side, 3).

    One square for the whole clip, so that the head moves and not the picture: around the median middle, 1.6 times as
    wide as the larger side of the median box, moved inside the picture and no larger than it.
    """
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = np.median(np.asarray(boxes, np.float64), axis=0)
    size = min(round(FACE_MARGIN * max(x1 - x0, y1 - y0)), height, width)
    left = int(np.clip(round((x0 + x1 - size) / 2), 0, width - size))
    top = int(np.clip(round((y0 + y1 - size) / 2), 0, height - size))
    method = cv2.INTER_AREA if size > side else cv2.INTER_CUBIC
    return np.stack(
        [
            cv2.resize(frame[top : top + size, left : left + size], (side, side), interpolation=method)
            for frame in frames
        ]
    )


def write_test_set(path: Path, chosen: TestSet) -> None:
    """Write a set as CSV under one comment line with its name, rule, seed and hash. Errors: DiskFullError."""
    about = {"name": chosen.name, "rule": chosen.rule, "seed": chosen.seed, "sha256": chosen.sha256}
    with atomic_write(path) as temporary:
        temporary.write_text(f"# {json.dumps(about)}\n{_table(chosen.clips)}", "utf-8")


def read_test_set(path: Path) -> TestSet:
    """Read what `write_test_set` wrote. Raises FileNotFoundError, and ListError where a line or the hash is wrong."""
    head, _, table = path.read_text("utf-8").partition("\n")
    try:
        about = json.loads(head.removeprefix("# "))
        lines = csv.DictReader(io.StringIO(table))
        clips = [TestClip(r["clip_id"], r["video_id"], float(r["start"]), float(r["end"])) for r in lines]
        found, said = TestSet(about["name"], about["rule"], about["seed"], tuple(clips)), about["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ListError(
            f"{path} is no list of a test set ({error}); expected one that `write_test_set` made."
        ) from error
    if found.sha256 != said:
        raise ListError(f"{path} says its hash is {said[:12]} and it is {found.sha256[:12]}; fetch the list again.")
    return found


def _table(clips: Sequence[TestClip]) -> str:
    names = [field.name for field in fields(TestClip)]
    rows = [(c.clip_id, c.video_id, f"{c.start:.3f}", f"{c.end:.3f}") for c in clips]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue()
