"""Who is in the clip? Face tracks from the scan's boxes; which of them speaks is left to sync."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.constants import FPS
from curation.config import PeopleConfig
from perception.faces.tracks import Track, track_faces


def find_tracks(config: PeopleConfig, row: Mapping[str, Any]) -> list[Track]:
    """Face tracks of a clip row on its 25 fps frames, reaching to its ends, the most often seen face first.

    The SyncNet reference asks for an overlap of 0.5 between neighbouring frames; ours lie a fifth of a second apart.
    """
    frames = round(row["duration"] * FPS)
    looks: list[np.ndarray] = [np.zeros((0, 4), np.float32)] * frames
    for seconds, boxes in row["faces"]:
        looks[min(round(seconds * FPS), frames - 1)] = np.asarray(boxes, np.float32).reshape(-1, 4)
    gap = round(config.max_gap * FPS)
    looked = np.array([min(round(seconds * FPS), frames - 1) for seconds, _ in row["faces"]])
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
    return Track(track.start_frame - before, boxes, track.detections)


def people_fields(tracks: list[Track], row: Mapping[str, Any], speaker: int = 0) -> dict[str, Any]:
    """Clip fields about faces: how many at a time; number, size, share of the picture and distance from the annotated
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


def annotated_distances(tracks: list[Track], row: Mapping[str, Any]) -> list[float] | None:
    """Distance of each face from the row's annotated point `x`, `y` (fractions of the frame), as a fraction of the
    frame, at `point_at` seconds of the clip or the nearest moment in which the face is seen; None without a point."""
    if row.get("x") is None or row.get("y") is None:
        return None
    asked = round((row.get("point_at") or 0.0) * FPS)
    boxes = np.stack(
        [
            track.boxes[int(np.clip(asked, track.start_frame, track.stop_frame - 1)) - track.start_frame]
            for track in tracks
        ]
    )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (row["width"], row["height"])
    return [round(float(distance), 4) for distance in np.hypot(*(centres - (row["x"], row["y"])).T)]
