"""One video as the extractors see it: decoded once, its faces looked for once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from common.media.audio import read_audio
from common.media.open import MediaError
from common.media.video import read_video
from eval.features.records import UnscorableError
from perception.faces.detect import Face, FaceDetector

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class DecodedVideo:
    """Frames (T, H, W, 3) uint8 RGB at 25 fps, the sound (n,) they are judged against, 16 kHz, and `real`, which gives
    the frames of the real video they are paired with or raises UnscorableError."""

    frames: np.ndarray
    wave: np.ndarray
    real: Callable[[], np.ndarray] = field(default=lambda: _absent(""))
    _faces: dict[int, Sequence[Face]] = field(default_factory=dict, repr=False)

    def faces(self, detector: FaceDetector, every: int = 1) -> Mapping[int, Sequence[Face]]:
        """Faces in every `every`-th frame, by frame; each frame is looked at once, whoever asks."""
        numbers = range(0, len(self.frames), every)
        for number in numbers:
            if number not in self._faces:
                self._faces[number] = detector.detect(self.frames[number])
        return {number: self._faces[number] for number in numbers}


def decode_for_metrics(root: Path, unit: Mapping[str, str]) -> DecodedVideo:
    """Decode what a unit (`video audio real`, paths below `root`, "" for none) names. Raises MediaError."""
    wave = read_sound(root / unit["audio"]) if unit["audio"] else np.zeros(0, np.float32)
    frames = _read_frames(root / unit["video"])
    if not unit["real"]:
        return DecodedVideo(frames, wave)
    if unit["real_sha256"] == unit["video_sha256"]:
        return DecodedVideo(frames, wave, lambda: frames)
    return DecodedVideo(frames, wave, partial(_real_frames, root / unit["real"], unit["real_sha256"]))


def read_sound(path: Path) -> np.ndarray:
    """The sound (n,) at 16 kHz; none at all for a file without a sound track, whose pictures can still be judged."""
    try:
        return read_audio(path)
    except MediaError as error:
        if error.kind != "no_audio":
            raise
        return np.zeros(0, np.float32)


@lru_cache(maxsize=1)
def _real_frames(path: Path, sha256: str) -> np.ndarray:
    """Frames of the real video; the units of all methods on one clip follow each other."""
    try:
        return read_video(path)
    except (MediaError, FileNotFoundError) as error:
        return _absent(f": {error}")


def _absent(why: str) -> np.ndarray:
    raise UnscorableError(f"no real video{why}")


def _read_frames(path: Path) -> np.ndarray:
    """A video, or a picture as a video of one frame."""
    if path.suffix.lower() not in PICTURES:
        return read_video(path)
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise MediaError("unreadable", f"{path} is not a picture that can be read; give a PNG or JPEG file.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None]
