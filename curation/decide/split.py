"""Test split: a seeded draw of an exact number of clips, stored as a list that can be published.

By video, no clip of a test clip's source or of its duplicates remains in training; by clip (as "100 random clips"
reads), other clips of the same video and person do.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import duckdb
import numpy as np
import pyarrow as pa

from common.clips import CLIP_SCHEMA
from common.errors import InputError, MissingFileError
from common.ledger.tables import check_table_format, connection_beside, sql_path
from common.runs import atomic_write
from common.untrusted.lists import open_list
from curation.decide.groups import first_of_group

By = Literal["video", "clip"]
COLUMNS = ("clip_id", "video_id", "t_start", "t_end")


@dataclass(frozen=True)
class HeldOut:
    """A test split: how it was drawn and its clips, each (clip_id, video_id, t_start, t_end), by clip_id."""

    by: By
    seed: int
    clips: tuple[tuple[str, str, float, float], ...]


def draw_split(clips: Path, count: int = 100, seed: int = 0, by: By = "video", of: str = "true") -> HeldOut:
    """Draw `count` kept clips of the clip table `clips`; by video no two of them come from the same or from linked
    videos.

    `of` is a condition of SQL on the clips to draw; rejected clips count too, as duplicates link videos with the same
    content. The draw depends on the ids and the seed alone, not on their order. Raises FileNotFoundError, and
    ValueError when there are not enough.
    """
    if not clips.exists():
        raise MissingFileError(f"{clips} does not exist; run the curation job, which writes it.")
    check_table_format(clips, CLIP_SCHEMA)
    with connection_beside(clips.parent) as connection:
        connection.execute(f"CREATE VIEW clips AS FROM read_parquet({sql_path(clips)})")
        if by == "video":
            connection.register("linked", linked_videos(connection, "clips"))
        connection.execute(
            f"""CREATE TABLE best AS
                SELECT {"coalesce(family, video_id)" if by == "video" else "clip_id"} AS name,
                arg_min(struct_pack({", ".join(COLUMNS)}), {_draw_sql(seed, "clip_id")}) AS clip
                FROM clips {"LEFT JOIN linked USING (video_id)" if by == "video" else ""}
                WHERE decision = 'kept' AND ({of}) GROUP BY ALL"""
        )
        ((there,),) = connection.sql("SELECT count(*) FROM best").fetchall()
        if there < count:
            what = "unconnected videos with kept clips" if by == "video" else "kept clips"
            raise InputError(f"A test split of {count} clips by {by} needs as many {what}, and there are {there}.")
        drawn = f"SELECT clip FROM best ORDER BY {_draw_sql(seed, 'name')} LIMIT {count}"
        chosen = connection.sql(f"SELECT unnest(clip) FROM ({drawn}) ORDER BY clip").fetchall()
    return HeldOut(by, seed, tuple(chosen))


def split_sql(connection: duckdb.DuckDBPyConnection, held: HeldOut, table: str) -> str:
    """SQL for the split of a row of `table`: "test" for the listed clips, "held_out" for what must be in neither split
    (by video: all else of their videos, of linked videos and of their duplicate groups), "train" for the rest.

    `table` has clip_id, video_id and dup_group; what the expression refers to is registered with the connection.
    """
    listed = pa.table({name: [clip[COLUMNS.index(name)] for clip in held.clips] for name in ("clip_id", "video_id")})
    connection.register("held_clips", listed.cast(pa.schema([("clip_id", pa.string()), ("video_id", pa.string())])))
    groups = f"SELECT dup_group FROM {table} WHERE clip_id IN (SELECT clip_id FROM held_clips)"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE held_groups AS SELECT DISTINCT * FROM ({groups})")
    connection.execute("DELETE FROM held_groups WHERE dup_group IS NULL")
    away = "CREATE OR REPLACE TEMP TABLE held_videos AS SELECT DISTINCT video_id FROM held_clips"
    if held.by == "video":
        connection.register("linked", linked_videos(connection, table))
        families = "SELECT family FROM linked JOIN held_clips USING (video_id)"
        connection.execute(f"{away} UNION SELECT video_id FROM linked WHERE family IN ({families})")
    else:
        connection.execute(f"{away} WHERE false")
    return """CASE WHEN clip_id IN (SELECT clip_id FROM held_clips) THEN 'test'
              WHEN dup_group IN (SELECT dup_group FROM held_groups) THEN 'held_out'
              WHEN video_id IN (SELECT video_id FROM held_videos) THEN 'held_out' ELSE 'train' END"""


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


def linked_videos(connection: duckdb.DuckDBPyConnection, table: str) -> pa.Table:
    """video_id and family of the videos that duplicate groups of `table` link: the first video, by id, of its connected
    component."""
    shown = connection.sql(f"SELECT DISTINCT video_id, dup_group FROM {table} WHERE dup_group IS NOT NULL ORDER BY ALL")
    videos, groups = (
        column.combine_chunks().cast(pa.string()).dictionary_encode() for column in shown.to_arrow_table().columns
    )
    names = videos.dictionary
    pairs = np.stack([videos.indices.to_numpy(), len(names) + groups.indices.to_numpy()], axis=1)
    first = first_of_group(len(names) + len(groups.dictionary), pairs)[: len(names)]
    return pa.table({"video_id": names, "family": names.take(pa.array(first))})


def _draw_sql(seed: int, name: str) -> str:
    """SQL for the pseudo-random sort key of a name under a seed, as hex digits."""
    return f"sha256(unhex('{f'{seed}'.encode().hex()}00') || encode({name}))"
