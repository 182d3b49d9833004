"""Frame strips show the requested frames, and unreadable files have none."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.media.write import write_video
from eval.reporting.pictures import frame_strip, image_file_uri, jpeg_uri


def opened(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_strip_runs_from_the_first_to_the_last_frame(tmp_path: Path) -> None:
    levels = np.linspace(20, 220, 51).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", [np.full((64, 48, 3), level, np.uint8) for level in levels], None)
    strip = frame_strip(tmp_path / "clip.mp4", frames=5)
    assert strip is not None
    picture = opened(strip)
    assert picture.shape == (128, 5 * 96, 3)
    middles = picture[64, 48::96, 0].astype(int)
    assert np.abs(middles - np.linspace(20, 220, 5)).max() < 8
    second_half = frame_strip(tmp_path / "clip.mp4", frames=5, start=1.0)
    assert second_half is not None and opened(second_half)[64, 48, 0] > 110


def test_an_unreadable_file_has_no_strip(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    assert frame_strip(tmp_path / "text.mp4") is None and frame_strip(tmp_path / "absent.mp4") is None
    assert image_file_uri(tmp_path / "text.mp4") is None and image_file_uri(tmp_path / "absent.png") is None


def test_images_keep_their_proportions() -> None:
    assert opened(jpeg_uri(np.zeros((40, 20, 3), np.uint8), 100)).shape == (100, 50, 3)
