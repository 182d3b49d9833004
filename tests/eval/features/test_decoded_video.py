"""A video is decoded once and each frame searched for faces once, whoever asks."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.media.open import MediaError
from common.media.write import write_video
from eval.features.decoded_video import DecodedVideo, decode_for_metrics
from eval.features.records import UnscorableError
from perception.faces.detect import Face

GREY = np.full((10, 32, 32, 3), 128, np.uint8)


class Counting:
    """Sees one face in every frame and counts its looks."""

    def __init__(self) -> None:
        self.looks = 0

    def detect(self, frame: np.ndarray) -> list[Face]:
        self.looks += 1
        return [Face(np.zeros(4, np.float32), 1.0, None)]


def unit(video: str, real: str = "", sha: str = "r") -> dict[str, str]:
    return {"video": video, "audio": "", "real": real, "video_sha256": "v", "real_sha256": sha}


def test_each_frame_is_looked_at_once() -> None:
    sight, detector = DecodedVideo(GREY, np.zeros(0)), Counting()
    assert sorted(sight.faces(detector, 3)) == [0, 3, 6, 9] and detector.looks == 4
    assert len(sight.faces(detector)) == 10 and detector.looks == 10
    sight.faces(detector, 2)
    assert detector.looks == 10


def test_the_real_video_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", GREY, None)
    assert decode_for_metrics(tmp_path, unit("a.mp4", "a.mp4")).real().shape == GREY.shape
    own = decode_for_metrics(tmp_path, unit("a.mp4", "a.mp4", "v"))
    assert own.real() is own.frames
    for absent in (unit("a.mp4"), unit("a.mp4", "lost.mp4", "q")):
        with pytest.raises(UnscorableError, match="no real video"):
            decode_for_metrics(tmp_path, absent).real()


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[[10, 20, 30]]], np.uint8))
    assert decode_for_metrics(tmp_path, unit("a.png")).frames.tolist() == [[[[30, 20, 10]]]]
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match="b.png is not a picture"):
        decode_for_metrics(tmp_path, unit("b.png"))
