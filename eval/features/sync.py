"""SyncNet on a video: face detection, tracking, crop, Sync-C, Sync-D and offset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.constants import SAMPLES_PER_FRAME
from eval.config import SyncRules
from eval.features.records import UnscorableError
from perception.faces.crop import crop_track
from perception.faces.detect import Face, FaceDetector
from perception.faces.tracks import Track, track_faces
from perception.sync.syncnet import WINDOW_FRAMES, SyncNet, sync_scores

BLUNT = 4  # half the width of the median filter behind the curve, frames


@dataclass(frozen=True)
class SyncJudge:
    """The two networks behind the sync scores and the rules they are used under."""

    detector: FaceDetector
    net: SyncNet
    rules: SyncRules = SyncRules()

    def score(
        self, frames: np.ndarray, wave: np.ndarray, faces: Mapping[int, Sequence[Face]] | None = None
    ) -> dict[str, np.ndarray]:
        """Scores of frames (T, H, W, 3) uint8 RGB at 25 fps against audio (n,) at 16 kHz.

        Scalars `sync_c`, `sync_d`, `sync_c_valid`, `sync_offset` (frames, positive = audio leads), `offset_zero` (1 or
        0) and `windows`; `curve`, the distance at the best shift per frame from frame `curve_start` on; `by_window`
        (windows, shifts) the distances behind them and `window_start`, the frame in the middle of the first window.
        `faces`: frame -> faces, where they were detected before. Raises UnscorableError without a face seen for
        `min_track` frames. Source: joonson/syncnet_python, run_pipeline.py and SyncNetInstance.py.
        """
        if faces is None:
            searched = range(0, len(frames), self.rules.look_every)
            faces = {number: self.detector.detect(frames[number]) for number in searched}
        track = longest_track(faces, len(frames), self.rules)
        start, stop = track.start_frame, track.stop_frame
        crops = crop_track(frames[start:stop], track.boxes, self.net.crop_size)
        result = sync_scores(self.net, crops, wave[start * SAMPLES_PER_FRAME :], self.rules.max_shift)
        scores = {name: np.asarray(getattr(result, name)) for name in ("sync_c", "sync_d", "sync_c_valid", "windows")}
        offset = np.asarray(result.offset)
        distance = result.sync_c + result.sync_d - result.curve
        # The median filter behind the curve reads zeros beyond both ends.
        middle = start + WINDOW_FRAMES // 2
        curve = {"curve": distance[BLUNT:-BLUNT], "curve_start": np.asarray(middle + BLUNT)}
        windows = {"by_window": result.by_window, "window_start": np.asarray(middle)}
        return scores | curve | windows | {"sync_offset": offset, "offset_zero": np.asarray(float(offset == 0))}


def longest_track(faces: Mapping[int, Sequence[Face]], frames: int, rules: SyncRules) -> Track:
    """The track of the face that is detected most often, from `faces` (frame -> faces) of a video of `frames` frames.

    Raises UnscorableError where none is detected for `min_track` frames.
    """
    boxes = [np.array([face.box for face in faces.get(number, ())]) for number in range(frames)]
    track = next(iter(track_faces(boxes)), None)
    detected = track.detections * rules.look_every if track else 0
    if track is None or detected < rules.min_track:
        raise UnscorableError(f"no face: seen in {detected} frames where {rules.min_track} are needed")
    return track
