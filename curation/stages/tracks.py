"""Tracks stage: a scanned source into its clips, and the face tracks of each; which face speaks is decided later.

The only place where tracks are computed. They lie in one Parquet file per source, which the clip rows name; later
stages read them with `read_tracks`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.constants import FPS
from common.executors.stage import ROWS, Stage, no_effect
from common.ledger.store import Outcome
from common.parquet import read_table
from common.runs import atomic_write
from common.tracks import TRACK_SCHEMA
from curation.config import CutConfig, PeopleConfig
from curation.rows import ClipRow, SourceRow
from curation.stages.scan import read_scan
from curation.stages.shots import Piece, split_source
from perception.faces.tracks import Track, track_faces

READS = ("unit", "source_sha256", "t_start", "t_end", "crop", "size", "tracks_sha256")
"""What a stage reads that looks at the faces of a clip: where the clip is cut, and its tracks."""

SYNC_SCORES = ("sync_c", "sync_d", "sync_offset")
"""What `sync_scores` of a clip row holds per track."""
LIPS = ("lip_motion", "lip_agreement")
"""What `lips` of a clip row holds per track."""

_STORED = ("clip_id", "track_id", "video_id", "start_frame", "stop_frame", "detections", "boxes", "points")
_FILE_SCHEMA = pa.schema([TRACK_SCHEMA.field(name) for name in _STORED])


@dataclass(frozen=True)
class TracksStage(Stage[SourceRow]):
    """Over scanned source rows; one row in, one per clip out (`rows`), and one file of tracks per source in `folder`.

    A clip's row holds the fields of `split_source`, `tracks_file` and `tracks_sha256`, `people` (see `people_fields`,
    of the face seen most often) and `room_below` per track.
    """

    name = "tracks"
    version = "1"
    reads = ("unit", "sha256", "scan_sha256", "cuts", "duration", "width", "height", "segments", "row_index")
    reads_if_set = ("audio_span", "shot_ends")
    config: PeopleConfig
    cut: CutConfig
    folder: Path = no_effect()

    def __call__(self, row: SourceRow) -> Outcome:
        """Split one source. Raises FileNotFoundError when the file of its scan is gone."""
        scan = read_scan(self.folder / row["scan_file"])
        pieces = split_source(self.cut, row, scan)
        tracks = [find_tracks(self.config, piece) for piece in pieces]
        file = write_source_tracks(self.folder, row["unit"], pieces, tracks)
        rows = [
            clip_fields(piece, of_clip, (row["width"], row["height"])) | {"tracks_file": file}
            for piece, of_clip in zip(pieces, tracks, strict=True)
        ]
        return Outcome(row["unit"], "kept", outputs={"tracks_file": file, ROWS: rows})

    def products(self, row: SourceRow, outcome: Outcome) -> Mapping[Path, int | None]:
        """The file of the tracks."""
        return {self.folder / outcome.outputs["tracks_file"]: None}


def clip_fields(piece: Piece, tracks: Sequence[Track], size: tuple[int, int]) -> dict[str, Any]:
    """The row of a clip of a source of this size (width, height), with the fields about its tracks."""
    row: dict[str, Any] = {"width": size[0], "height": size[1], **piece.row}
    digest = hashlib.sha256()
    for track in tracks:
        digest.update(f"{track.start_frame} {track.detections}".encode() + track.boxes.astype("<f4").tobytes())
        if track.points is not None:
            digest.update(track.points.astype("<f4").tobytes())
    return dict(piece.row) | {
        "tracks_sha256": digest.hexdigest(),
        "people": people_fields(tracks, row),
        "room_below": [room_below(track, row["height"]) for track in tracks],
    }


def write_source_tracks(folder: Path, video_id: str, pieces: Sequence[Piece], tracks: Sequence[Sequence[Track]]) -> str:
    """Write the tracks of the clips of one source into `folder`, under a name made of their content; returns it."""
    rows = [
        {
            "clip_id": piece.row["clip_id"],
            "track_id": number,
            "video_id": video_id,
            "start_frame": track.start_frame,
            "stop_frame": track.stop_frame,
            "detections": track.detections,
            "boxes": track.boxes.tolist(),
            "points": None if track.points is None else track.points.reshape(-1, 10).tolist(),
        }
        for piece, of_clip in zip(pieces, tracks, strict=True)
        for number, track in enumerate(of_clip)
    ]
    table = pa.Table.from_pylist(rows, _FILE_SCHEMA)
    digest = hashlib.sha256(video_id.encode())
    for row in rows:
        digest.update(repr(row).encode())
    name = f"{digest.hexdigest()[:16]}.tracks.parquet"
    with atomic_write(folder / name) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return name


def read_tracks(folder: Path, row: ClipRow) -> list[Track]:
    """The face tracks of a clip, in their order. Raises FileNotFoundError."""
    return [_track(each) for each in read_source_tracks(folder / row["tracks_file"]) if each["clip_id"] == row["unit"]]


def _track(row: Mapping[str, Any]) -> Track:
    points = row.get("points")  # of a detector that has some
    five = None if points is None else np.asarray(points, np.float32).reshape(-1, 5, 2)
    return Track(row["start_frame"], np.asarray(row["boxes"], np.float32).reshape(-1, 4), row["detections"], five)


@lru_cache(maxsize=4)  # the clips of a source come one after the other
def read_source_tracks(file: Path) -> tuple[dict[str, Any], ...]:
    """The rows that `write_source_tracks` wrote. Raises FileNotFoundError."""
    return tuple(read_table(file).to_pylist())


def track_rows(folder: Path, clips: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of the track table: the tracks of scored clips, each with what the judges said of it."""
    for clip in clips:
        distances = annotated_distances(read_tracks(folder, clip), clip) or []  # type: ignore[arg-type]
        stored = [row for row in read_source_tracks(folder / clip["tracks_file"]) if row["clip_id"] == clip["unit"]]
        judged = {"asd_speaking_pct": clip.get("speaking_pct"), "xy_distance": distances}
        for column, names in (("sync_scores", SYNC_SCORES), ("lips", LIPS)):
            scores = clip.get(column) or []
            judged |= {name: [score[place] for score in scores] for place, name in enumerate(names)}
        for row in stored:
            number = row["track_id"]
            values = {name: of_tracks[number] for name, of_tracks in judged.items() if of_tracks}
            yield {**row, "is_speaker": number == clip.get("face_track_id"), **values}


def room_below(track: Track, height: int) -> float:
    """How many heights of the face fit between its chin and the lower edge of the frame, median over the track."""
    boxes = track.boxes
    return float(np.median((height - boxes[:, 3]) / np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)))


def find_tracks(config: PeopleConfig, piece: Piece) -> list[Track]:
    """Face tracks of a clip on its 25 fps frames, reaching to its ends, the most often seen face first.

    The SyncNet reference asks for an overlap of 0.5 between neighbouring frames; ours lie a fifth of a second apart.
    """
    frames = round(piece.row["duration"] * FPS)
    looks: list[np.ndarray] = [np.zeros((0, 4))] * frames
    for seconds, boxes in piece.faces:
        looks[min(round(seconds * FPS), frames - 1)] = np.asarray(boxes)
    gap = round(config.max_gap * FPS)
    looked = np.array([min(round(seconds * FPS), frames - 1) for seconds, _ in piece.faces])
    tracks = [_to_ends(track, frames, gap) for track in track_faces(looks, config.min_overlap, gap)]
    return [track for track in tracks if _is_person(config, track, looked, frames)]


def _is_person(config: PeopleConfig, track: Track, looked: np.ndarray, frames: int) -> bool:
    meanwhile = np.count_nonzero((looked >= track.start_frame) & (looked < track.stop_frame))
    return len(track.boxes) >= config.min_share * frames and bool(track.detections >= config.min_density * meanwhile)


def _to_ends(track: Track, frames: int, gap: int) -> Track:
    """Hold the first and the last box up to the ends of the clip where these are no further than a gap."""
    before = track.start_frame if track.start_frame <= gap else 0
    after = frames - track.stop_frame if frames - track.stop_frame <= gap else 0
    boxes = np.pad(track.boxes, ((before, after), (0, 0)), mode="edge")
    points = track.points
    if points is not None:
        points = np.pad(points, ((before, after), (0, 0), (0, 0)), mode="edge")
    return Track(track.start_frame - before, boxes, track.detections, points)


def people_fields(tracks: Sequence[Track], row: Mapping[str, Any], speaker: int = 0) -> dict[str, Any]:
    """Clip fields about faces: how many at a time; number, size, share of the frame and distance from the annotated
    point of track `speaker`."""
    frames = round(row["duration"] * FPS)
    count = np.zeros(frames, int)
    for track in tracks:
        count[track.start_frame : track.stop_frame] += 1
    fields: dict[str, Any] = {"n_faces_median": float(np.median(count)) if frames else 0.0}
    if not tracks:
        return fields | {"face_track_id": None, "face_px": None, "face_area_pct": None, "xy_agreement": None}
    width, height = (tracks[speaker].boxes[:, 2:] - tracks[speaker].boxes[:, :2]).T
    return fields | {
        "face_track_id": speaker,
        "face_px": round(float(np.median(np.maximum(width, height))), 1),
        "face_area_pct": round(100 * float(np.median(width * height)) / (row["width"] * row["height"]), 2),
        "xy_agreement": distances[speaker] if (distances := annotated_distances(tracks, row)) else None,
    }


def annotated_distances(tracks: Sequence[Track], row: Mapping[str, Any]) -> list[float] | None:
    """Distance of each face from the row's annotated point `x`, `y` (fractions of the frame), as a fraction of the
    frame, at `point_at` seconds of the clip or the nearest moment in which the face is seen.

    None without a point or without faces.
    """
    if not tracks or row.get("x") is None or row.get("y") is None:
        return None
    frame = round((row.get("point_at") or 0.0) * FPS)
    boxes = np.stack(
        [
            track.boxes[int(np.clip(frame, track.start_frame, track.stop_frame - 1)) - track.start_frame]
            for track in tracks
        ]
    )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (row["width"], row["height"])
    return [round(float(distance), 4) for distance in np.hypot(*(centres - (row["x"], row["y"])).T)]
