"""Framing stage: how much of the person is seen and where the face looks, from body points and head angles.

Framing is "head" (head and shoulders), "semi" (to the hips, with arms) or "full" (to the feet).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from common.constants import FPS
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.video import read_frames
from curation.config import FramingConfig
from curation.rows import ClipRow
from curation.stages.tracks import READS, read_tracks
from perception.faces.tracks import overlap

if TYPE_CHECKING:
    from perception.faces.detect import FaceDetector
    from perception.pose import Pose, PoseEstimator

NOSE, WRISTS, HIPS, ANKLES = 0, (9, 10), (11, 12), (15, 16)  # COCO
ANGLES = ("yaw", "pitch", "roll")
ANGLES_FILE = "1k3d68.onnx"
PERCENTILES = (5, 50, 95)
MIN_OVERLAP = 0.3  # of a detected face with the track's box, to be the same face


def framing_judges(models: Mapping[str, Path | None]) -> tuple[Weights, ...]:
    """Of a recipe's models those that `FramingStage` can use: pose, and a face pack with head angles."""
    pose, pack = models.get("pose"), models.get("face_detector")
    usable = {"pose": pose, "face_detector": pack if pack and (pack / ANGLES_FILE).is_file() else None}
    return tuple(Weights.of(role, path) for role, path in usable.items() if path)


def framing_fields(config: FramingConfig, row: ClipRow) -> dict[str, Any]:
    """Clip field framing from the room below the speaking face (`room_below` of track `face_track_id`): where a body
    would reach, not where it does; null without a face."""
    speaker = row.get("face_track_id")
    if speaker is None:
        return {"framing": None}
    below = row["room_below"][speaker]
    return {"framing": "full" if below >= config.full_from else "semi" if below >= config.semi_from else "head"}


@dataclass(frozen=True)
class FramingStage(Stage[ClipRow]):
    """Over cut clip rows, for what needs weights.

    Role pose: clip fields framing and wrist_visible_pct. Role face_detector, whose pack must hold 1k3d68.onnx: yaw,
    pitch and roll (`_p05`, `_p50`, `_p95`). A role that is left out leaves its fields as they are.
    """

    name = "framing"
    pool = "gpu"
    version = "1"
    reads = (*READS, "face_track_id")
    config: FramingConfig
    judges: tuple[Weights, ...]
    folder: Path = no_effect()
    tracks: Path = no_effect()
    pose: "PoseEstimator | None" = loaded()
    faces: "FaceDetector | None" = loaded()

    def load(self) -> None:
        """Load the networks whose weights are there."""
        from perception.faces.detect import load_face_detector
        from perception.pose import load_pose_estimator

        cv2.setNumThreads(1)  # the executor's processes are the parallelism
        paths = {weights.role: weights.file for weights in self.judges}
        pose = load_pose_estimator(paths["pose"]) if "pose" in paths else None
        faces = load_face_detector(paths["face_detector"], angles=True) if "face_detector" in paths else None
        self.hold(pose=pose, faces=faces)

    def __call__(self, row: ClipRow) -> Outcome:
        """Look at some frames of the speaking face; a clip without a face has no fields."""
        speaker = row.get("face_track_id")
        if speaker is None:
            return Outcome(row["unit"], "kept")
        track = read_tracks(self.tracks, row)[speaker]
        step = max(1, round(FPS / self.config.frames_per_second))
        numbers = list(range(track.start_frame, track.stop_frame, step))
        bodies: list[Pose | None] = []
        angles: list[tuple[float, ...]] = []
        for number, frame in zip(numbers, read_frames(self.folder / f"{row['unit']}.mp4", numbers), strict=True):
            box = track.boxes[number - track.start_frame]
            if self.pose is not None:
                bodies.append(owner_of(box, self.pose.estimate(frame)))
            if self.faces is not None:
                angles += head_angles(box, self.faces, frame)
        fields = body_fields(self.config, bodies, (row["width"], row["height"])) if any(bodies) else {}
        return Outcome(row["unit"], "kept", outputs=fields | angle_fields(angles))


def owner_of(box: np.ndarray, bodies: Sequence["Pose"]) -> "Pose | None":
    """The body whose nose lies in a face's box x0, y0, x1, y1, the surest if there are several."""
    inside = [body for body in bodies if bool(((body.points[NOSE] >= box[:2]) & (body.points[NOSE] <= box[2:])).all())]
    return max(inside, key=lambda body: float(body.scores[NOSE])) if inside else None


def body_fields(config: FramingConfig, bodies: Sequence["Pose | None"], size: tuple[int, int]) -> dict[str, Any]:
    """Clip fields framing and wrist_visible_pct from a person's body in each frame looked at (None: not found)."""

    def seen(joints: tuple[int, ...]) -> float:
        return float(np.mean([body is not None and _visible(config, body, joints, size) for body in bodies]))

    whole, half, wrist = seen(ANKLES), seen(HIPS), seen(WRISTS)
    framing = "full" if whole >= config.min_share else "semi" if half >= config.min_share else "head"
    return {"framing": framing, "wrist_visible_pct": round(100 * wrist, 2)}


def _visible(config: FramingConfig, body: "Pose", joints: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether any of the joints is confident and inside the frame: pose networks place hidden ones beyond its edge."""
    points, sure = body.points[list(joints)], body.scores[list(joints)] >= config.min_score
    return bool((sure & ((points >= 0) & (points < size)).all(axis=1)).any())


def head_angles(box: np.ndarray, faces: "FaceDetector", frame: np.ndarray) -> list[tuple[float, ...]]:
    """Yaw, pitch and roll in degrees of the face at a track's box; empty when it is not found in this frame."""
    found = [face for face in faces.detect(frame) if face.angles is not None]
    if not found:
        return []
    shared = overlap(box[None].astype(np.float64), np.stack([face.box for face in found]))[0]
    best = found[int(shared.argmax())]
    return [best.angles] if shared.max() >= MIN_OVERLAP and best.angles is not None else []


def angle_fields(angles: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Clip fields yaw_p05 to roll_p95 from the angles of each frame; none when no frame has any."""
    if not angles:
        return {}
    values = np.percentile(np.asarray(angles, np.float64), PERCENTILES, axis=0)
    return {
        f"{angle}_p{percentile:02d}": round(float(values[row, column]), 2)
        for column, angle in enumerate(ANGLES)
        for row, percentile in enumerate(PERCENTILES)
    }
