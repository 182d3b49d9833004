"""Sync-C, Sync-D and offset of a video: face detector, track, crop, SyncNet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perception.faces import FaceDetector
from perception.syncnet import SyncNet, crop_track, sync_scores
from perception.tracks import Track, track_faces


class UnscorableError(ValueError):
    """A clip that a metric has no value for: it counts against coverage and is never a zero."""


@dataclass(frozen=True)
class SyncRules:
    """`max_shift` in frames to each side (15 in the reference); `min_track` frames a face must be followed for.

    The reference asks for more than 100 frames, which no 3 s clip has, so the number used is part of every result.
    """

    max_shift: int = 15
    min_track: int = 25


@dataclass(frozen=True)
class SyncJudge:
    """The two networks behind the sync scores and the rules they are used under."""

    detector: FaceDetector
    net: SyncNet
    rules: SyncRules = SyncRules()

    def score(self, frames: np.ndarray, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of frames (T, H, W, 3) uint8 RGB at 25 fps against sound (n,) at 16 kHz.

        Scalars `sync_c`, `sync_d`, `sync_c_valid`, `sync_offset` (frames, positive = sound leads), `windows`, the
        per-frame `curve` and the `start` frame of the face track it belongs to. Raises UnscorableError without a face
        track of `min_track` frames. Source: joonson/syncnet_python, run_pipeline.py and SyncNetInstance.py.
        """
        track = main_track([[face.box for face in self.detector.detect(frame)] for frame in frames])
        if track is None or len(track.boxes) < self.rules.min_track:
            followed = 0 if track is None else len(track.boxes)
            raise UnscorableError(f"no face: followed for {followed} of {self.rules.min_track} frames")
        start, stop = track.start_frame, track.start_frame + len(track.boxes)
        crops = crop_track(frames[start:stop], track.boxes, self.net.crop_size)
        result = sync_scores(self.net, crops, wave[start * 640 : stop * 640], self.rules.max_shift)
        names = ("sync_c", "sync_d", "sync_c_valid", "curve", "windows")
        scores = {name: np.asarray(getattr(result, name)) for name in names}
        return scores | {"sync_offset": np.asarray(result.offset), "start": np.asarray(start)}


def main_track(boxes_per_frame: Sequence[Sequence[np.ndarray]]) -> Track | None:
    """The longest face track, the larger face among equals; None when no face was found."""

    def rank(track: Track) -> tuple[int, float]:
        sides = track.boxes[:, 2:] - track.boxes[:, :2]
        return len(track.boxes), float(sides.max(1).mean())

    return max(track_faces(boxes_per_frame), key=rank, default=None)
