"""The track table: one row per face track of a clip, with its boxes and what each judge says of it."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.ledger.tables import check_table_format, write_sorted
from common.parquet import read_batches

TEXT, INT, REAL = pa.string(), pa.int64(), pa.float64()
POINTS = pa.list_(pa.list_(pa.float32(), 10))
BOXES = pa.list_(pa.list_(pa.float32(), 4))

# What each field means, with its unit; a judge that was not asked, or that could not be, leaves null.
TRACK_FIELDS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("clip_id", TEXT, "the clip, as in the clip table"),
    ("track_id", INT, "number of the track within the clip, the face seen most often first; clips.face_track_id"),
    ("video_id", TEXT, "id of the source video"),
    ("start_frame", INT, "first frame of the clip, at 25 fps, in which the face is tracked"),
    ("stop_frame", INT, "one past the last such frame"),
    ("detections", INT, "frames in which the face was detected; boxes in between are interpolated"),
    ("boxes", BOXES, "x0, y0, x1, y1 in pixels of the clip's frame, for every frame from start_frame on"),
    (
        "points",
        POINTS,
        "x and y of eyes, nose and mouth corners, left as seen first, for every frame; null: not looked for",
    ),
    ("is_speaker", pa.bool_(), "whether this face is taken for the one that speaks"),
    ("asd_speaking_pct", REAL, "percent of its frames in which the active-speaker network sees it speak"),
    ("sync_c", REAL, "SyncNet confidence against the source's audio"),
    ("sync_d", REAL, "SyncNet distance"),
    ("sync_offset", INT, "frames by which the source's audio is off, by this face"),
    ("lip_motion", REAL, "how much the lips move; see perception.sync.lips"),
    ("lip_agreement", REAL, "correlation of the lips' motion with the loudness"),
    ("xy_distance", REAL, "distance from the data set's annotated point, fraction of the frame"),
)
TRACK_FORMAT = 1
TRACK_SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"meaning": text}) for name, kind, text in TRACK_FIELDS],
    metadata={"format": f"tracks {TRACK_FORMAT}"},
)
TRACKS_FILE = "tracks.parquet"
ORDER = "clip_id, track_id"
GROUP_ROWS = 1024  # of the file and in memory: a row with the boxes of 20 s is 100 kB of Python objects


def write_tracks(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the track table, sorted by clip and track; equal rows give equal bytes. Fields left out of a row are null.

    The rows are taken one by one and never all held in memory. Raises DiskFullError.
    """
    write_sorted(Path(path), _pieces(rows), TRACK_SCHEMA, ORDER, GROUP_ROWS)


def _pieces(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
    remaining = iter(rows)
    while len(piece := pa.RecordBatch.from_pylist(list(islice(remaining, GROUP_ROWS)), TRACK_SCHEMA)):
        yield piece


def stream_tracks(path: Path | str) -> Iterator[dict[str, Any]]:
    """The rows of a track table as dicts, read piece by piece. Raises FileNotFoundError, FormatVersionError."""
    check_table_format(Path(path), TRACK_SCHEMA)
    for batch in read_batches(path, GROUP_ROWS):
        yield from batch.to_pylist()
