"""Video: a few exact frames, a span, shots on top of decoding, and the whole way from a file to what the models see."""

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import pytest
from scenedetect import detect
from scenedetect.detectors import AdaptiveDetector

from common.executors.stage import Weights
from common.media.audio import read_audio
from common.media.index import index_video, probe
from common.media.video import decode_stored, decode_video, read_frames, read_video
from curation.config import ScanConfig
from curation.stages.scan import ScanStage, read_scan
from miniature.world.clips import draw_clip
from perception.faces.detect import Face
from tests.benchmarks.measure import ROUNDS, Row, compare, cpu_seconds

SIZE = (1280, 720)
SHOTS, SHOT_SECONDS = 3, 10.0
CUTS = [10.0, 20.0]
FACE_SIDE = 640


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty seconds at 720p as a video site has them: H.264 High of 2 Mbit/s, a key frame every five seconds, AAC.

    Drawn people before walls that pass by, with grain, and a cut every ten seconds.
    """
    path = tmp_path_factory.mktemp("media") / "source.mp4"
    options = {"preset": "medium", "maxrate": "3M", "bufsize": "4M", "threads": "1"}
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options=options)
        video.width, video.height, video.pix_fmt, video.bit_rate = *SIZE, "yuv420p", 2_000_000
        video.codec_context.gop_size = 125
        audio = container.add_stream("aac", rate=44_100, layout="stereo")
        for number, picture in enumerate(_pictures(*SIZE)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        noise = 0.1 * np.random.default_rng(0).standard_normal((2, 30 * 44_100)).astype(np.float32)
        for begin in range(0, noise.shape[1], 1024):
            block = np.ascontiguousarray(noise[:, begin : begin + 1024])
            sound = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 44_100, begin, Fraction(1, 44_100)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return path


def _pictures(width: int, height: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    left = (width - height) // 2
    for seed in range(SHOTS):
        pattern = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
        wall = cv2.resize(pattern, (2 * width, height), interpolation=cv2.INTER_CUBIC)
        grain = rng.integers(-6, 7, (4, height, width, 3), np.int16)
        for number, frame in enumerate(draw_clip(seed, SHOT_SECONDS, "half").frames):
            picture = wall[:, 3 * number % width :][:, :width].astype(np.int16)
            picture[:, left : left + height] = cv2.resize(frame, (height, height), interpolation=cv2.INTER_CUBIC)
            yield np.clip(picture + grain[number % 4], 0, 255).astype(np.uint8)


def _eight(count: int) -> list[int]:
    return [int((number + 0.5) * count / 8) for number in range(8)]


def _by_decord(path: Path, wanted: Sequence[int]) -> np.ndarray:
    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(wanted).asnumpy()


def _anew(path: Path) -> Path:
    os.utime(path)  # the index of an unchanged file is kept; here it is made anew each time
    return path


def test_eight_exact_frames(report: Callable[[Row], None], source: Path) -> None:
    """Eight evenly spaced frames of thirty seconds."""
    wanted = _eight(750)
    np.testing.assert_array_equal(read_frames(source, wanted), _by_decord(source, wanted))
    np.testing.assert_array_equal(read_frames(source, wanted), np.stack(list(decode_video(source, fps=None)))[wanted])

    def ours() -> np.ndarray:
        return read_frames(_anew(source), wanted)

    report(compare("8 exact frames of 750 at 720p", "decord", ours, lambda: _by_decord(source, wanted), aim=0.65))


def test_five_seconds_from_the_middle(report: Callable[[Row], None], source: Path) -> None:
    """Every frame of 13.72 to 18.72 s, which begin nearly four seconds after a key frame."""
    wanted = range(343, 468)

    def ours() -> np.ndarray:
        return read_video(_anew(source), start=13.72, end=18.72)

    np.testing.assert_array_equal(ours(), _by_decord(source, wanted))
    # Of 218 frames from the key frame on, both have to decode and convert the 125 that are asked for; only of the 93
    # before them can those be left out that no other refers to.
    report(compare("5 s from 13.72 s at 720p", "decord", ours, lambda: _by_decord(source, wanted), aim=0.7))


class FaceSized:
    """Instead of a face detector, which both sides would pay alike: the pictures that it would look at."""

    name = "none"

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []

    def detect(self, frame: np.ndarray) -> list[Face]:
        """No faces."""
        self.frames.append(_face_sized(frame))
        return []


def _face_sized(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame, (FACE_SIDE, FACE_SIDE * frame.shape[0] // frame.shape[1]))


def _scan(path: Path, faces: FaceSized, interval: float) -> list[float]:
    config = ScanConfig(face_interval=interval)
    stage = ScanStage(config, Weights("face_detector", None, ""), path.parent / "per_frame")
    stage.hold(detector=faces)
    outcome = stage({"unit": "source", "path": str(path)})
    return list((outcome.outputs | read_scan(stage.folder / outcome.outputs["scan_file"])._asdict())["cuts"])


def _library_cuts(path: Path) -> list[float]:
    return [first.frame_num / 25 for first, _ in detect(str(path), AdaptiveDetector())][1:]


def test_shots_on_top_of_decoding(report: Callable[[Row], None], source: Path) -> None:
    """What finding cuts (and repeated frames) adds to a bare decode, on our side and on PySceneDetect's."""

    def ours() -> list[float]:
        return _scan(source, FaceSized(), 1e9)

    def decode() -> None:
        for _ in decode_stored(source):
            pass

    assert ours() == _library_cuts(source) == CUTS
    times = [
        (cpu_seconds(decode), cpu_seconds(ours), cpu_seconds(lambda: _library_cuts(source))) for _ in range(ROUNDS)
    ]
    own, peer = tuple(our - bare for bare, our, _ in times), tuple(their - bare for bare, _, their in times)
    report(Row("shots of 30 s at 720p, less the decode", "PySceneDetect", own, peer, aim=0.25))


def test_front_end(report: Callable[[Row], None], source: Path) -> None:
    """All that the models need of a source; the peer runs the usual five programs, each with its own decode.

    Ours takes the key frames nearest to the eight for the picture's quality (`curation.quality.frames: key`).
    """

    def ours() -> dict[str, object]:
        described, faces = probe(_anew(source)), FaceSized()
        cuts, keys = _scan(source, faces, 0.2), index_video(source).keys
        nearest = sorted({int(keys[np.abs(keys - frame).argmin()]) for frame in _eight(described.frames)})
        found = {"frames": described.frames, "cuts": cuts, "faces": faces.frames, "sound": read_audio(source)}
        return found | {"quality": read_frames(source, nearest)}

    def peer() -> dict[str, object]:
        with av.open(str(source)) as container:
            frames = sum(packet.size > 0 for packet in container.demux(video=0))
        found = {"frames": frames, "cuts": _library_cuts(source), "faces": _faces_by_opencv(source)}
        return found | {"sound": _plain_audio(source), "quality": _by_decord(source, _eight(750))}

    one, other = ours(), peer()
    assert (one["frames"], one["cuts"], len(one["faces"])) == (other["frames"], other["cuts"], len(other["faces"]))
    assert np.abs(np.asarray(one["faces"], int) - other["faces"]).mean() < 3
    assert (
        abs(len(one["sound"]) - len(other["sound"])) <= 1600 and one["quality"].shape[1:] == other["quality"].shape[1:]
    )
    report(compare("probe, shots, faces' frames, sound, 8 frames", "five programs", ours, peer, aim=0.45))


def _faces_by_opencv(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    capture.set(cv2.CAP_PROP_N_THREADS, 1)
    while capture.grab():
        if int(capture.get(cv2.CAP_PROP_POS_FRAMES) - 1) % 5 == 0:
            frames.append(_face_sized(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)))
    return frames


def _plain_audio(path: Path) -> np.ndarray:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts)
