"""Sync-C, Sync-D and offset of a video: face detector, track, crop, SyncNet."""

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
        self, frames: np.ndarray, wave: np.ndarray, found: Mapping[int, Sequence[Face]] | None = None
    ) -> dict[str, np.ndarray]:
        """Scores of frames (T, H, W, 3) uint8 RGB at 25 fps against sound (n,) at 16 kHz.

        Scalars `sync_c`, `sync_d`, `sync_c_valid`, `sync_offset` (frames, positive = sound leads), `offset_zero` (1 or
        0) and `windows`; `curve`, the distance at the best shift per frame from frame `curve_start` on; `by_window`
        (windows, shifts) the distances behind them and `window_start`, the frame in the middle of the first window.
        `found` are faces by frame, if somebody has looked already. Raises UnscorableError without a face seen for
        `min_track` frames. Source: joonson/syncnet_python, run_pipeline.py and SyncNetInstance.py.
        """
        if found is None:
            looked_at = range(0, len(frames), self.rules.look_every)
            found = {number: self.detector.detect(frames[number]) for number in looked_at}
        track = longest_track(found, len(frames), self.rules)
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


def longest_track(found: Mapping[int, Sequence[Face]], frames: int, rules: SyncRules) -> Track:
    """The face seen most often among those `found` by frame in a video of so many frames.

    UnscorableError where none is seen for `min_track` frames.
    """
    boxes = [np.array([face.box for face in found.get(number, ())]) for number in range(frames)]
    track = next(iter(track_faces(boxes)), None)
    seen = track.detections * rules.look_every if track else 0
    if track is None or seen < rules.min_track:
        raise UnscorableError(f"no face: seen in {seen} frames where {rules.min_track} are needed")
    return track


def confidence_of(by_window: np.ndarray, chosen: np.ndarray) -> float:
    """Sync-C from the distances (L, 2V + 1) of the `chosen` windows (L,) bool, those shifted past the ends left out.

    UnscorableError where none is chosen.
    """
    windows, shifts = by_window.shape
    position = np.arange(windows)[:, None] + np.arange(shifts) - shifts // 2
    inside = (position >= 0) & (position < windows) & chosen[:, None]
    reached = inside.any(axis=0)
    if not reached.any():
        raise UnscorableError("no speech: nobody speaks while the face is seen")
    means = np.where(inside, by_window, 0).sum(axis=0)[reached] / inside.sum(axis=0)[reached]
    return float(np.median(means) - means.min())
