"""Scan stage: one decode pass per source for shot cuts, faces and frames that repeat the one before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from numpy.lib.stride_tricks import sliding_window_view

from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.display import planes, to_rgb
from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import decode_stored
from common.parquet import read_table
from common.runs import atomic_write
from curation.config import ScanConfig
from curation.rows import Scan, SourceRow

if TYPE_CHECKING:
    from perception.faces.detect import FaceDetector

SHOT_SIDE = 128  # px, longer side of the frames for shot detection
SHOT_WINDOW = 2  # frames before and after that a change is compared with
MOST_RATIO = 255.0
MOTION_GRID = 32
# Video stores luma as 16..235 and colour differences as 16..240 (BT.601 and BT.709 alike).
LEVELS = np.arange(256.0)
FULL_RANGE = np.stack(
    [np.clip(np.rint(level), 0, 255) for level in ((LEVELS - 16) * 255 / 219, *[(LEVELS - 128) * 255 / 224 + 128] * 2)],
    axis=-1,
)[None].astype(np.uint8)


SCAN_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("motion", pa.list_(pa.int16())),
        ("face_times", pa.list_(pa.float64())),
        ("face_boxes", pa.list_(pa.list_(pa.list_(pa.float64(), 4)))),
    ]
)


@dataclass(frozen=True)
class ScanStage(Stage[SourceRow]):
    """Over probed source rows: decodes every stored frame once, for shot cuts, faces and frames that repeat.

    Outputs: `cuts`, seconds at which a new shot begins; `scan_file`, written into `folder`, which `read_scan` reads,
    and `scan_sha256` of what it says. Rejected as truncated, unreadable or unsupported when decoding fails on the way.
    """

    name = "scan"
    version = "3"
    reads = ("unit", "sha256")
    reads_if_set = ("presentation",)
    config: ScanConfig
    face_detector: Weights
    folder: Path = no_effect()
    detector: "FaceDetector" = loaded()

    def load(self) -> None:
        """Load the face detector; without a pack OpenCV's cascade."""
        from perception.faces.detect import load_face_detector

        cv2.setNumThreads(1)  # the executor's processes are the parallelism
        self.hold(detector=load_face_detector(self.face_detector.path))

    def __call__(self, row: SourceRow) -> Outcome:
        """Scan one source and write the per-frame results."""
        try:
            times = index_video(row["path"]).times
            state = _ScanState(self.config, self.detector)
            for number, frame in enumerate(decode_stored(row["path"], self.config.reader)):
                state.add(float(times[number]), frame)
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        cuts = [round(float(times[number]), 4) for number in find_cuts(self.config, state.changes)]
        name, digest = write_scan(self.folder, row["unit"], Scan(state.faces, state.motion))
        return Outcome(row["unit"], "kept", outputs={"cuts": cuts, "scan_file": name, "scan_sha256": digest})

    def products(self, row: SourceRow, outcome: Outcome) -> Mapping[Path, int | None]:
        """The file of the scan."""
        return {self.folder / outcome.outputs["scan_file"]: None}


def write_scan(folder: Path, video_id: str, scan: Scan) -> tuple[str, str]:
    """Write a scan into `folder` under a name made of its content; returns the name and the SHA-256 of the content."""
    times, boxes = [time for time, _ in scan.faces], [boxes for _, boxes in scan.faces]
    row = {"video_id": video_id, "motion": scan.motion, "face_times": times, "face_boxes": boxes}
    digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()
    name = f"{digest[:16]}.scan.parquet"
    with atomic_write(folder / name) as temporary:
        pq.write_table(pa.Table.from_pylist([row], SCAN_SCHEMA), temporary, compression="zstd")
    return name, digest


def read_scan(file: Path) -> Scan:
    """What `write_scan` wrote. Raises FileNotFoundError."""
    (row,) = read_table(file).to_pylist()
    return Scan(list(zip(row["face_times"], row["face_boxes"], strict=True)), row["motion"])


@dataclass
class _ScanState:
    """What was seen so far of one video: of each frame an image of 128 px, of a few the whole frame."""

    config: ScanConfig
    detector: "FaceDetector"
    changes: list[float] = field(default_factory=lambda: [0.0])
    faces: list[tuple[float, list[list[float]]]] = field(default_factory=list)
    motion: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._next_face = 0.0

    def add(self, time: float, frame: VideoFrame) -> None:
        """Measure the next frame, shown at `time` seconds."""
        small = small_frame(frame)
        colours = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_YCrCb2BGR), cv2.COLOR_BGR2HSV)
        grid = cv2.resize(small[..., 0], (MOTION_GRID, MOTION_GRID), interpolation=cv2.INTER_AREA)
        if self._before is not None:
            self.changes.append(cv2.norm(colours, self._before[0], cv2.NORM_L1) / colours.size)
            self.motion.append(int(cv2.absdiff(grid, self._before[1]).max()))
        self._before = colours, grid
        # Half a millisecond of grace: sums of frame times are not exact.
        if time >= self._next_face - 5e-4:
            boxes = [[round(float(side), 1) for side in face.box] for face in self.detector.detect(to_rgb(frame))]
            self.faces.append((round(time, 4), boxes))
            self._next_face = max(self._next_face + self.config.face_interval, time)


def small_frame(frame: VideoFrame) -> np.ndarray:
    """Luma, red and blue difference (h, w, 3) uint8 0..255, not upright, the longer side at most 128 px.

    Made from the decoder's planes: converting every frame to RGB first would cost half as much as decoding it.
    """
    luma, blue, red = planes(frame)
    scale = min(1.0, SHOT_SIDE / max(luma.shape))
    size = max(1, round(luma.shape[1] * scale)), max(1, round(luma.shape[0] * scale))
    small = cv2.merge([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in (luma, red, blue)])
    full_range = frame.format.name == "yuvj420p" or frame.color_range == ColorRange.JPEG
    return small if full_range else cv2.LUT(small, FULL_RANGE)


def find_cuts(config: ScanConfig, changes: Sequence[float]) -> list[int]:
    """Numbers of the frames at which a shot begins, from each frame's change since the one before (the first has 0).

    The rule of PySceneDetect's AdaptiveDetector: a change, the mean absolute difference in hue, saturation and value,
    is a cut when it is `shot_threshold` times the mean of the two before and the two after, and `shot_min_content`.
    """
    width = 2 * SHOT_WINDOW + 1
    if len(changes) < width:
        return []
    windows = sliding_window_view(np.asarray(changes, float), width)
    change = windows[:, SHOT_WINDOW]
    around = np.delete(windows, SHOT_WINDOW, axis=1).mean(axis=1)
    # Over nothing any change is a cut, if it is large enough.
    ratio = np.where(around < 1e-5, MOST_RATIO, np.minimum(change / np.maximum(around, 1e-5), MOST_RATIO))
    found, last = [], 0
    for number in np.flatnonzero((ratio >= config.shot_threshold) & (change >= config.shot_min_content)) + SHOT_WINDOW:
        if number - last >= config.min_shot:
            found.append(int(number))
            last = int(number)
    return found
