"""Text stage: burned-in text and its nearness to the face, over the clip."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from common.constants import FPS
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.video import read_frames
from curation.config import TextConfig
from curation.rows import ClipRow
from curation.stages.tracks import READS, read_tracks
from perception.faces.tracks import Track

if TYPE_CHECKING:
    from perception.text import TextDetector

EYES_DOWN_TO = 0.6  # of a face's box, from its top


@dataclass(frozen=True)
class TextStage(Stage[ClipRow]):
    """Over cut clip rows. Outputs: clip fields text_judge, text_area_pct and text_near_face_pct."""

    name = "text"
    version = "2"
    reads = (*READS, "face_track_id")
    config: TextConfig
    folder: Path = no_effect()
    tracks: Path = no_effect()
    text_detector: Weights = Weights("text_detector", None, "")
    detector: "TextDetector | None" = loaded(default=None)

    def load(self) -> None:
        """Load the text detector, if there is one; one thread for OpenCV: the executor's processes are the
        parallelism."""
        from perception.text import load_text_detector

        cv2.setNumThreads(1)
        if self.text_detector.path is not None:
            self.hold(detector=load_text_detector(self.text_detector.path))

    def __call__(self, row: ClipRow) -> Outcome:
        """Means over the clip: text in percent of the frame; and weighted by its nearness to the speaker's face, in
        percent of the face's box (null without a face): subtitles over a chin count whole, a channel's logo hardly."""
        from perception.text import nearness

        tracks, speaker = read_tracks(self.tracks, row), row.get("face_track_id")
        covered, near_face = [], []
        for number, text in self._masks(row):
            boxes = [_box_at(track, number) for track in tracks]
            # The network does not take eyes for letters, and what is written over them counts.
            mask = text if self.detector else _without_eyes(text, boxes)
            covered.append(float(mask.mean()))
            if speaker is not None:
                weighted = float((mask * nearness(mask.shape, boxes[speaker])).sum())
                near_face.append(weighted / max(float(np.prod(boxes[speaker][2:] - boxes[speaker][:2])), 1.0))
        fields = {
            "text_judge": "pp-ocr" if self.detector else "strokes",
            "text_area_pct": round(100 * float(np.mean(covered)), 3),
            "text_near_face_pct": round(100 * float(np.mean(near_face)), 3) if near_face else None,
        }
        return Outcome(row["unit"], "kept", outputs=fields)

    def _masks(self, row: ClipRow) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of the frames looked at, and where (H, W) each shows text."""
        from perception.text import text_mask

        file, pairs = self.folder / f"{row['unit']}.mp4", _pairs(self.config, row["duration"])
        if self.detector is not None:
            numbers = [number for number, _ in pairs]
            yield from zip(numbers, map(self.detector.mask, read_frames(file, numbers)), strict=True)
            return
        frames = read_frames(file, [number for pair in pairs for number in pair])
        for (number, _), first, second in zip(pairs, frames[::2], frames[1::2], strict=True):
            yield number, text_mask(first, second)


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
