"""Face boxes of clips, for test sets cropped to the face: from curation's track table, else detected now."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.media.video import decode_video
from common.parquet import read_table
from common.runs import RunFolder
from common.tracks import TRACKS_FILE
from curation.config import PeopleConfig
from curation.stages.shots import Piece
from curation.stages.tracks import find_tracks
from perception.faces.detect import FaceDetector

Row = Mapping[str, Any]
DETECT_SECONDS = 0.2  # between two detections, where curation has stored no tracks


def stored_boxes(run: RunFolder, clips: Sequence[Row]) -> dict[str, str]:
    """clip_id -> SHA-256 of the boxes that the run's track table has for the speaker of the clip.

    Clips without a face, and all clips of a run without a track table, are left out.
    """
    file = run.root / TRACKS_FILE
    if not file.exists() or not clips:
        return {}
    names = [clip["clip_id"] for clip in clips]
    columns = ["clip_id", "is_speaker", "boxes"]
    rows = read_table(file, columns=columns, filters=[("clip_id", "in", names)]).to_pylist()
    return {
        row["clip_id"]: hashlib.sha256(repr(row["boxes"]).encode()).hexdigest() for row in rows if row["is_speaker"]
    }


def speaker_boxes(people: PeopleConfig, clip: Row, load: Callable[[], FaceDetector]) -> np.ndarray | None:
    """Boxes (T, 4) px of the speaker's face by curation, else of the face detected most often; None without a face.

    `clip` has `path`, `duration` (s), `clip_id` and `tracks`, the track table that holds it, or "" for a clip whose
    faces are to be detected now, by the detector that `load` gives. Raises what `decode_video` raises.
    """
    if clip["tracks"]:
        only = [("clip_id", "==", clip["clip_id"]), ("is_speaker", "==", True)]
        (row,) = read_table(clip["tracks"], columns=["boxes"], filters=only).to_pylist()
        return np.asarray(row["boxes"], np.float32).reshape(-1, 4)
    frames = enumerate(decode_video(clip["path"], fps=1 / DETECT_SECONDS))
    faces = [(number * DETECT_SECONDS, [list(face.box) for face in load().detect(frame)]) for number, frame in frames]
    tracks = find_tracks(people, Piece({"duration": clip["duration"]}, faces))
    return tracks[0].boxes if tracks else None
