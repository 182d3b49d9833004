"""Sync-C, Sync-D and offset of a video: face detector, track, crop, SyncNet."""

from dataclasses import dataclass

import numpy as np

from perception.faces import FaceDetector
from perception.syncnet import SAMPLES_PER_FRAME, WINDOW_FRAMES, SyncNet, crop_track, sync_scores
from perception.tracks import track_faces

BLUNT = 4  # half the width of that filter, frames


class UnscorableError(ValueError):
    """A clip that a metric has no value for: it counts against coverage and is never a zero."""


@dataclass(frozen=True)
class SyncRules:
    """`max_shift` in frames to each side (15 in the reference); `min_track` frames a face must be seen for.

    The reference asks for more than 100 frames, which no 3 s clip has, so the number used is part of every result. The
    detector looks at one frame in `look_every` (1 in the reference); boxes in between are interpolated.
    """

    max_shift: int = 15
    min_track: int = 25
    look_every: int = 1


@dataclass(frozen=True)
class SyncJudge:
    """The two networks behind the sync scores and the rules they are used under."""

    detector: FaceDetector
    net: SyncNet
    rules: SyncRules = SyncRules()

    def score(self, frames: np.ndarray, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of frames (T, H, W, 3) uint8 RGB at 25 fps against sound (n,) at 16 kHz.

        Scalars `sync_c`, `sync_d`, `sync_c_valid`, `sync_offset` (frames, positive = sound leads), `offset_zero` (1 or
        0) and `windows`; `curve`, the distance at the best shift per frame from frame `curve_start` on. Raises
        UnscorableError without a face seen for `min_track` frames. Source: joonson/syncnet_python, run_pipeline.py
        and SyncNetInstance.py.
        """
        boxes = [np.zeros((0, 4), np.float32)] * len(frames)
        for number in range(0, len(frames), self.rules.look_every):
            boxes[number] = np.array([face.box for face in self.detector.detect(frames[number])])
        track = next(iter(track_faces(boxes)), None)  # the face seen most often comes first
        seen = track.detections * self.rules.look_every if track else 0
        if track is None or seen < self.rules.min_track:
            raise UnscorableError(f"no face: seen in {seen} frames where {self.rules.min_track} are needed")
        start, stop = track.start_frame, track.stop_frame
        crops = crop_track(frames[start:stop], track.boxes, self.net.crop_size)
        result = sync_scores(self.net, crops, wave[start * SAMPLES_PER_FRAME :], self.rules.max_shift)
        scores = {name: np.asarray(getattr(result, name)) for name in ("sync_c", "sync_d", "sync_c_valid", "windows")}
        offset = np.asarray(result.offset)
        distance = result.sync_c + result.sync_d - result.curve
        # The median filter behind the curve reads zeros beyond both ends.
        curve = {"curve": distance[BLUNT:-BLUNT], "curve_start": np.asarray(start + BLUNT + WINDOW_FRAMES // 2)}
        return scores | curve | {"sync_offset": offset, "offset_zero": np.asarray(float(offset == 0))}
