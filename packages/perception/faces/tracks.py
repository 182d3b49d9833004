"""Face tracks: greedy matching of boxes by overlap, as SyncNet's own pipeline does it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_OVERLAP = 0.5
MAX_GAP = 25  # frames without a detection inside one track


@dataclass(frozen=True)
class Track:
    """One face over time: `boxes` (n, 4) float32 x0, y0, x1, y1 for every frame from `start_frame` on, interpolated
    where the face was not detected; `detections` counts the frames where it was; `points` (n, 5, 2) float32 the
    keypoints, as `perception.faces.detect.Face` has them, where the detector has any."""

    start_frame: int
    boxes: np.ndarray
    detections: int
    points: np.ndarray | None = None

    @property
    def stop_frame(self) -> int:
        """One past the last frame."""
        return self.start_frame + len(self.boxes)

    @property
    def size(self) -> float:
        """The larger of mean width and mean height in pixels."""
        return float(max((self.boxes[:, 2:] - self.boxes[:, :2]).mean(axis=0)))


def track_faces(
    boxes_per_frame: Sequence[np.ndarray],
    min_overlap: float = MIN_OVERLAP,
    max_gap: int = MAX_GAP,
    min_detections: int = 1,
) -> list[Track]:
    """Join face boxes (k, 4) of successive frames into tracks, the one seen most often first; keypoints may follow each
    box (k, 14).

    A box joins the track whose last box it overlaps most, if that intersection over union exceeds `min_overlap` and
    the last one lies at most `max_gap` frames back. A frame that was not looked at is an empty array. Rule of
    joonson/syncnet_python (run_pipeline.py), which keeps tracks of more than 100 detections: too many for 3 s clips.
    """
    tracks: list[list[tuple[int, np.ndarray]]] = []
    for number, boxes in enumerate(boxes_per_frame):
        boxes = np.asarray(boxes, np.float32)
        boxes = boxes.reshape(len(boxes), -1) if boxes.size else np.zeros((0, 4), np.float32)
        alive = [track for track in tracks if number - track[-1][0] <= max_gap]
        last = [track[-1][1][:4] for track in alive]
        overlaps = overlap(np.stack(last), boxes[:, :4]) if alive else np.zeros((0, len(boxes)))
        free = set(range(len(boxes)))
        # The best pair first; each track and each box is used once.
        while overlaps.size and overlaps.max() > min_overlap:
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            alive[row].append((number, boxes[column]))
            free.discard(int(column))
            overlaps[row, :], overlaps[:, column] = 0, 0
        tracks.extend([(number, boxes[column])] for column in sorted(free))
    kept = [_filled(track) for track in tracks if len(track) >= min_detections]
    return sorted(kept, key=lambda track: (-track.detections, -track.size, track.start_frame))


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), x0, y0, x1, y1."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-9)


def _filled(track: list[tuple[int, np.ndarray]]) -> Track:
    """Boxes and keypoints for every frame between the first and the last detection, linear in between."""
    seen = np.array([number for number, _ in track])
    corners = np.stack([box for _, box in track])
    frames = np.arange(seen[0], seen[-1] + 1)
    values = np.stack([np.interp(frames, seen, column) for column in corners.T], axis=1).astype(np.float32)
    points = values[:, 4:].reshape(-1, 5, 2) if values.shape[1] > 4 else None
    return Track(int(seen[0]), values[:, :4], len(track), points)
