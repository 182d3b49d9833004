"""Where is the face of a clip, for a set that shows faces? As curation saw it, else as the detector sees it now."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.ledger.store import ledger_files, ledger_sql
from common.ledger.tables import connection_beside
from common.media.video import decode_video
from common.runs import RunFolder
from curation.config import PeopleConfig
from curation.stages.people import find_tracks
from perception.faces.detect import FaceDetector

Row = Mapping[str, Any]
ClipFeatures = tuple[
    float, Sequence[Sequence[float]]
]  # seconds, and the boxes x0, y0, x1, y1 px of the faces seen then
LOOK_SECONDS = 0.2  # between two looks for faces, where curation has not looked


def stored_looks(run: RunFolder, clips: Sequence[Row]) -> dict[str, list[ClipFeatures]]:
    """clip_id -> where curation saw faces in it, on the clip's clock and in its pixels, from the ledger of the run.

    Clips that are a crop of their source, and those whose scan is not in the ledger, are left out.
    """
    by_version: dict[str, list[Row]] = {}
    for clip in clips:
        version = (clip["stage_versions"] or {}).get("scan")
        if version and not clip["crop"]:
            by_version.setdefault(version, []).append(clip)
    found = {}
    for version, wanted in by_version.items():
        scanned = _scans(run.ledger, version, sorted({clip["video_id"] for clip in wanted}))
        for clip in wanted:
            if looks := scanned.get(clip["video_id"]):
                start, end = clip["t_start"], clip["t_end"]
                found[clip["clip_id"]] = [(round(t - start, 4), boxes) for t, boxes in looks if start <= t < end]
    return found


def _scans(ledger: Path, version: str, videos: list[str]) -> dict[str, list[ClipFeatures]]:
    sql = f"""SELECT unit, outputs FROM ({ledger_sql(ledger_files(ledger, "scan", version))})
              WHERE state = 'kept' AND unit IN (SELECT unit FROM wanted) ORDER BY recorded"""
    with connection_beside(ledger) as connection:
        connection.register("wanted", pa.table({"unit": videos}))
        return {unit: json.loads(outputs)["faces"] for unit, outputs in connection.execute(sql).fetchall()}


def speaker_boxes(people: PeopleConfig, clip: Row, load: Callable[[], FaceDetector]) -> np.ndarray | None:
    """Boxes (T, 4) px of the face that curation found to speak, else of the one seen most often; None without a face.

    `clip` has `path`, `duration` (s), `face_track_id` and `looks`, which is None for a clip to look at now, with the
    detector that `load` gives. Raises what `decode_video` raises.
    """
    looks = clip["looks"]
    if looks is None:
        frames = enumerate(decode_video(clip["path"], fps=1 / LOOK_SECONDS))
        looks = [(number * LOOK_SECONDS, [face.box for face in load().detect(frame)]) for number, frame in frames]
    tracks = find_tracks(people, {"duration": clip["duration"], "faces": looks})
    speaker = clip["face_track_id"] or 0
    return tracks[speaker if speaker < len(tracks) else 0].boxes if tracks else None
