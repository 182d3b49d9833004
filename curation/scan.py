"""What happens in the picture? One decode pass per source: shot cuts, faces, frames that repeat the one before."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from common.executors import Stage
from common.ledger import Outcome
from common.media import MediaError, decode_video, index_video
from perception.faces import FaceDetector, load_face_detector

SHOT_SIDE = 128  # px, longer side of the picture that shots are looked for in
MOTION_GRID = 32


@dataclass(frozen=True)
class ScanConfig:
    """`shot_threshold`, `shot_min_content`: PySceneDetect's adaptive detector (ratio to the neighbours; least change);
    `min_shot` frames between two cuts; `face_interval` seconds between the frames that faces are looked for in."""

    shot_threshold: float = 3.0
    shot_min_content: float = 15.0
    min_shot: int = 15
    face_interval: float = 0.2


def scan_stage(config: ScanConfig, face_pack: Path | None, face_hash: str) -> Stage:
    """The stage over probed source rows.

    Outputs: `cuts` seconds at which a new shot begins; `faces` [[seconds, [[x0, y0, x1, y1], ...]], ...] px for each
    frame looked at; `motion` per frame, the largest change of a cell of a 32x32 grid of luma (0..255) since the last.
    """
    make = partial(_make, config, face_pack)
    return Stage("scan", "1", asdict(config), {"face_detector": face_hash}, make, reads=("unit", "sha256"))


def _make(config: ScanConfig, face_pack: Path | None) -> Callable[[dict[str, Any]], Outcome]:
    cv2.setNumThreads(1)  # the executor's processes are the parallelism
    return partial(scan_source, config, load_face_detector(face_pack))


def scan_source(config: ScanConfig, detector: FaceDetector, row: dict[str, Any]) -> Outcome:
    """Decode every stored frame once; rejected as truncated or unreadable when that fails on the way."""
    try:
        times = index_video(row["path"]).times
        scan = _Scan(config, detector)
        for number, frame in enumerate(decode_video(row["path"], fps=None)):
            scan.look(number, float(times[number]), frame)
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    cuts = [round(float(times[number]), 4) for number in scan.cuts]
    return Outcome(row["unit"], "kept", outputs={"cuts": cuts, "faces": scan.faces, "motion": scan.motion})


@dataclass
class _Scan:
    """What has been seen so far of one video."""

    config: ScanConfig
    detector: FaceDetector
    cuts: list[int] = field(default_factory=list)
    faces: list[tuple[float, list[list[float]]]] = field(default_factory=list)
    motion: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shots = AdaptiveDetector(
            adaptive_threshold=self.config.shot_threshold,
            min_content_val=self.config.shot_min_content,
            min_scene_len=self.config.min_shot,
        )
        self._before: np.ndarray | None = None
        self._next_face = 0.0

    def look(self, number: int, time: float, frame: np.ndarray) -> None:
        """Take in frame `number` (H, W, 3) RGB, shown at `time` seconds."""
        scale = min(1.0, SHOT_SIDE / max(frame.shape[:2]))
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        # The rate only turns lengths in seconds into frames, and ours are in frames.
        found = self._shots.process_frame(FrameTimecode(number, fps=25.0), cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        self.cuts.extend(cut.frame_num for cut in found)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        grid = cv2.resize(grey, (MOTION_GRID, MOTION_GRID), interpolation=cv2.INTER_AREA).astype(np.int16)
        if self._before is not None:
            self.motion.append(int(np.abs(grid - self._before).max()))
        self._before = grid
        # Half a millisecond of grace: sums of frame times are not exact.
        if time >= self._next_face - 5e-4:
            boxes = [[round(float(side), 1) for side in face.box] for face in self.detector.detect(frame)]
            self.faces.append((round(time, 4), boxes))
            self._next_face = max(self._next_face + self.config.face_interval, time)
