"""Video: a few exact frames, and how often a source is decoded."""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from common.media import decode_video, read_frames, read_video, write_video
from curation.scan import MOTION_GRID, SHOT_SIDE, ScanConfig, scan_source
from miniature.world import draw_clip
from perception.faces import FaceDetector, load_face_detector
from tests.benchmarks.measure import Row, compare

QUALITY = 21  # about 2 Mbit/s at 720p, as sources have


def draw_video(path: Path, size: tuple[int, int], shots: int, seconds: float) -> None:
    """Drawn people before walls that pass by, with grain: `shots` of `seconds` each; `size` is (width, height)."""
    write_video(path, _pictures(*size, shots, seconds), None, crf=QUALITY)


def _pictures(width: int, height: int, shots: int, seconds: float) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    left = (width - height) // 2
    for seed in range(shots):
        pattern = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
        wall = cv2.resize(pattern, (2 * width, height), interpolation=cv2.INTER_CUBIC)
        grain = rng.integers(-6, 7, (4, height, width, 3), np.int16)
        for number, frame in enumerate(draw_clip(seed, seconds, "half").frames):
            picture = wall[:, 3 * number % width :][:, :width].astype(np.int16)
            picture[:, left : left + height] = cv2.resize(frame, (height, height), interpolation=cv2.INTER_CUBIC)
            yield np.clip(picture + grain[number % 4], 0, 255).astype(np.uint8)


def test_eight_exact_frames(report: Callable[[Row], None], tmp_path: Path) -> None:
    """Eight evenly spaced frames of ten seconds; the peer is decord where it is installed."""
    path = tmp_path / "clip.mp4"
    draw_video(path, (832, 480), 1, 10.0)
    wanted = [int((number + 0.5) * 250 / 8) for number in range(8)]
    against, read = ("decord", _decord_frames) if find_spec("decord") else ("PyAV, a seek per frame", _seek_each)

    def ours() -> np.ndarray:
        os.utime(path)  # the index of an unchanged file is kept; here it is made anew each time
        return read_frames(path, wanted)

    def peer() -> np.ndarray:
        return read(path, wanted)

    np.testing.assert_array_equal(ours(), read_video(path, fps=None)[wanted])
    np.testing.assert_array_equal(ours(), peer())
    report(compare("8 exact frames of 250 at 480p", against, ours, peer, aim=0.65))


def _decord_frames(path: Path, wanted: Sequence[int]) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(wanted).asnumpy()


def _seek_each(path: Path, wanted: Sequence[int]) -> np.ndarray:
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number in wanted:
            stamp = int(number / 25 / stream.time_base)
            container.seek(stamp, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= stamp)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def test_one_decode_pass(report: Callable[[Row], None], tmp_path: Path) -> None:
    """Shots, repeated frames and faces of a 720p source; the peer runs the same three, each with its own decode."""
    path = tmp_path / "source.mp4"
    draw_video(path, (1280, 720), 2, 3.0)
    config, detector = ScanConfig(), load_face_detector(None)

    def ours() -> dict[str, object]:
        return scan_source(config, detector, {"unit": "source", "path": str(path)}).outputs

    def peer() -> dict[str, object]:
        return {"cuts": _cuts(path, config), "faces": _faces(path, detector), "motion": _motion(path)}

    found = ours()
    assert found == peer() and found["cuts"] == [3.0] and any(boxes for _, boxes in found["faces"])
    # A front end of five programs would allow 0.45; here both sides also pay the same for the face detector.
    report(compare("shots, motion, faces of 6 s at 720p", "a decode for each", ours, peer, aim=0.45))


def _small(path: Path) -> Iterator[np.ndarray]:
    for frame in decode_video(path, fps=None):
        scale = SHOT_SIDE / max(frame.shape[:2])
        yield cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _cuts(path: Path, config: ScanConfig) -> list[float]:
    shots = AdaptiveDetector(config.shot_threshold, config.min_shot, min_content_val=config.shot_min_content)
    cuts = []
    for number, picture in enumerate(_small(path)):
        cuts += shots.process_frame(FrameTimecode(number, fps=25.0), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return [cut.frame_num / 25 for cut in cuts]


def _motion(path: Path) -> list[int]:
    cells = (MOTION_GRID, MOTION_GRID)
    greys = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in _small(path))
    grids = np.stack([cv2.resize(grey, cells, interpolation=cv2.INTER_AREA) for grey in greys]).astype(np.int16)
    return np.abs(np.diff(grids, axis=0)).max(axis=(1, 2)).tolist()


def _faces(path: Path, detector: FaceDetector) -> list[tuple[float, list[list[float]]]]:
    """Decodes at five frames per second, so that frames nobody looks at are not converted."""
    found = (detector.detect(frame) for frame in decode_video(path, fps=5.0))
    boxes = ([[round(float(side), 1) for side in face.box] for face in faces] for faces in found)
    return [(round(0.2 * number, 4), rows) for number, rows in enumerate(boxes)]
