"""A picture comes back out of its address, and what cannot be read gives none."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.media.write import write_video
from curation.reporting.thumbnails import HEIGHT, thumbnail


def test_the_middle_frame_becomes_a_small_picture(tmp_path: Path) -> None:
    frames = np.zeros((11, 64, 128, 3), np.uint8)
    frames[4:7] = (200, 30, 30)
    write_video(tmp_path / "clip.mp4", frames, None)
    address = thumbnail(tmp_path / "clip.mp4")
    assert address is not None and len(address) < 4000
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,")))))
    assert picture.shape == (HEIGHT, 2 * HEIGHT, 3)
    assert np.abs(picture.mean(axis=(0, 1)) - (200, 30, 30)).max() < 15


def test_no_picture_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "page.mp4").write_text("<html>gone</html>" * 50)
    assert thumbnail(tmp_path / "page.mp4") is None and thumbnail(tmp_path / "absent.mp4") is None
