"""Text stage: burned-in text and its nearness to the face, in pairs of frames over the clip; needs no weights."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.constants import FPS
from common.executors.stage import Stage, no_effect
from common.ledger.store import Outcome
from common.media.video import read_frames
from curation.config import TextConfig
from curation.rows import ClipRow
from curation.stages.tracks import READS, read_tracks
from perception.faces.tracks import Track

EYES_DOWN_TO = 0.6  # of a face's box, from its top


@dataclass(frozen=True)
class TextStage(Stage[ClipRow]):
    """Over cut clip rows. Outputs: clip fields text_area_pct and text_near_face_pct."""

    name = "text"
    version = "1"
    reads = (*READS, "face_track_id")
    config: TextConfig
    folder: Path = no_effect()
    tracks: Path = no_effect()

    def load(self) -> None:
        """One thread for OpenCV: the executor's processes are the parallelism."""
        cv2.setNumThreads(1)

    def __call__(self, row: ClipRow) -> Outcome:
        """Means over the clip: text in percent of the frame; and weighted by its nearness to the speaker's face, in
        percent of the face's box (null without a face): subtitles over a chin count whole, a channel's logo hardly."""
        from perception.text import nearness, text_mask

        tracks, speaker = read_tracks(self.tracks, row), row.get("face_track_id")
        pairs = _pairs(self.config, row["duration"])
        frames = read_frames(self.folder / f"{row['unit']}.mp4", [number for pair in pairs for number in pair])
        covered, near_face = [], []
        for (number, _), first, second in zip(pairs, frames[::2], frames[1::2], strict=True):
            boxes = [_box_at(track, number) for track in tracks]
            mask = _without_eyes(text_mask(first, second), boxes)
            covered.append(float(mask.mean()))
            if speaker is not None:
                weighted = float((mask * nearness(mask.shape, boxes[speaker])).sum())
                near_face.append(weighted / max(float(np.prod(boxes[speaker][2:] - boxes[speaker][:2])), 1.0))
        fields = {
            "text_area_pct": round(100 * float(np.mean(covered)), 3),
            "text_near_face_pct": round(100 * float(np.mean(near_face)), 3) if near_face else None,
        }
        return Outcome(row["unit"], "kept", outputs=fields)


def _box_at(track: Track, frame: int) -> np.ndarray:
    """The box (4,) of a face at a frame, or at the nearest one in which it is tracked."""
    box: np.ndarray = track.boxes[int(np.clip(frame - track.start_frame, 0, len(track.boxes) - 1))]
    return box


def _without_eyes(mask: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """Text, less what lies on the upper part of a face: brows, eyes and glasses are a row of strokes, too."""
    mask = mask.copy()
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(0, int(y0)), max(0, int(y0 + EYES_DOWN_TO * (y1 - y0))))
        mask[rows, max(0, int(x0)) : max(0, int(np.ceil(x1)))] = False
    return mask


def _pairs(config: TextConfig, duration: float) -> list[tuple[int, int]]:
    """Numbers of the two frames of every pair that lies inside the clip; one pair, as far apart as can be, at least."""
    frames, apart = round(duration * FPS), max(1, round(config.seconds_apart * FPS))
    step = max(1, round(config.interval * FPS))
    return [(start, start + apart) for start in range(0, frames - apart, step)] or [(0, frames - 1)]
