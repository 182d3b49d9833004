"""Test split: a seeded draw of an exact number of clips, stored as a list that can be published.

By video, no clip of a test clip's source or of its duplicates remains in training; by clip (as "100 random clips"
reads), other clips of the same video and person do.
"""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import InputError
from common.runs import atomic_write
from common.untrusted.lists import open_list

Row = Mapping[str, Any]
By = Literal["video", "clip"]
COLUMNS = ("clip_id", "video_id", "t_start", "t_end")


@dataclass(frozen=True)
class HeldOut:
    """A test split: how it was drawn and its clips, each (clip_id, video_id, t_start, t_end), by clip_id."""

    by: By
    seed: int
    clips: tuple[tuple[str, str, float, float], ...]


def draw_split(rows: Sequence[Row], count: int = 100, seed: int = 0, by: By = "video") -> HeldOut:
    """Draw `count` kept clips; by video no two of them come from the same or from linked videos.

    `rows` are all rows of the clip table: rejected duplicates link videos with the same content. The draw depends on
    the ids and the seed alone, not on their order. Raises ValueError when there are not enough.
    """
    kept = [row for row in rows if row["decision"] == "kept"]
    group_of = _linked(rows) if by == "video" else {row["clip_id"]: row["clip_id"] for row in kept}
    best: dict[str, Row] = {}
    for row in sorted(kept, key=lambda row: _draw(seed, row["clip_id"])):
        best.setdefault(group_of[row["video_id" if by == "video" else "clip_id"]], row)
    if len(best) < count:
        what = "unconnected videos with kept clips" if by == "video" else "kept clips"
        raise InputError(f"A test split of {count} clips by {by} needs as many {what}, and there are {len(best)}.")
    chosen = sorted(best, key=lambda group: _draw(seed, group))[:count]
    clips = sorted(tuple(best[group][name] for name in COLUMNS) for group in chosen)
    return HeldOut(by, seed, tuple(clips))  # type: ignore[arg-type]


def assign_split(held: HeldOut, rows: Sequence[Row]) -> dict[str, str]:
    """clip_id -> split of every row: "test" for the listed clips, "held_out" for what must be in neither split (by
    video: all else of their videos, of linked videos and of their duplicate groups), "train" for the rest."""
    listed = {clip[0] for clip in held.clips}
    splits = {row["clip_id"]: "test" if row["clip_id"] in listed else "train" for row in rows}
    groups = {row["dup_group"] for row in rows if row["clip_id"] in listed and row.get("dup_group")}
    group_of = _linked(rows) if held.by == "video" else {}
    away = {group_of.get(clip[1], clip[1]) for clip in held.clips} if held.by == "video" else set()
    for row in rows:
        shared = row.get("dup_group") in groups or group_of.get(row["video_id"]) in away
        if shared and splits[row["clip_id"]] == "train":
            splits[row["clip_id"]] = "held_out"
    return splits


def write_split(path: Path, held: HeldOut) -> None:
    """Write a test split as text: a comment that says how it was drawn, then one clip a line. Raises DiskFullError."""
    head = f"# {len(held.clips)} test clips by {held.by}, seed {held.seed}: {' '.join(COLUMNS)}"
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{head}\n")
        rows = ((clip[0], clip[1], f"{clip[2]:.3f}", f"{clip[3]:.3f}") for clip in held.clips)
        # A video's id is its path: one with a tab, a quote or a line end in it is quoted.
        csv.writer(file, "excel-tab", lineterminator="\n").writerows(rows)


def read_split(path: Path) -> HeldOut:
    """Read the file of `write_split`. Raises FileNotFoundError, and ValueError naming the line that is no clip."""
    with open_list(path, newline="") as file:
        head = file.readline().strip()
        words = head.replace(",", " ").replace(":", " ").split()
        if (
            words[:1] != ["#"]
            or words[2:5] != ["test", "clips", "by"]
            or words[5:6] not in [[by] for by in get_args(By)]
        ):
            raise InputError(f"{path} begins with {head[:80]!r}; expected a list written by `write_split`.")
        clips, row = [], [""]
        reader = csv.reader(file, "excel-tab")
        try:
            for row in filter(None, reader):
                clip, video, start, end = row
                clips.append((clip, video, float(start), float(end)))
        except (ValueError, csv.Error) as error:
            line = f"{path}, line {reader.line_num + 1}"
            raise InputError(f"{line} is {' '.join(row)[:200]!r}; expected {', '.join(COLUMNS)}.") from error
    if len(clips) != int(words[1]):
        raise InputError(f"{path} says {words[1]} clips and holds {len(clips)}; fetch the whole list.")
    return HeldOut(words[5], int(words[7]), tuple(clips))  # type: ignore[arg-type]


def _linked(rows: Iterable[Row]) -> dict[str, str]:
    """video_id -> first video of its connected component, where duplicate groups link videos (union-find)."""
    parent: dict[str, str] = {}
    shown_by: dict[str, str] = {}

    def root(video: str) -> str:
        while parent.setdefault(video, video) != video:
            parent[video] = parent[parent[video]]
            video = parent[video]
        return video

    for row in rows:
        own = root(row["video_id"])
        if row.get("dup_group"):
            other = root(shown_by.setdefault(row["dup_group"], row["video_id"]))
            parent[max(own, other)] = min(own, other)
    return {video: root(video) for video in list(parent)}


def _draw(seed: int, name: str) -> str:
    """Pseudo-random sort key of a name under a seed, as hex digits."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def apply_split(test_list: str, clips: Sequence[dict[str, Any]]) -> None:
    """Set the split of clip rows from a list of `write_split`; without a list they keep their split."""
    if test_list:
        splits = assign_split(read_split(Path(test_list)), clips)
        for clip in clips:
            clip["split"] = splits[clip["clip_id"]]
