"""A header may claim anything; what no camera makes is refused before any work is done for it."""

import struct
from pathlib import Path

import numpy as np
import pytest

from common.media.audio import read_audio
from common.media.index import index_video, probe
from common.media.open import MediaError
from common.media.write import write_video
from tests.common.media.test_video import clicks, numbered


@pytest.fixture
def content(tmp_path: Path) -> bytearray:
    write_video(tmp_path / "whole.mp4", numbered(50), clicks(50))
    return bytearray((tmp_path / "whole.mp4").read_bytes())


def fault_of(path: Path, content: bytes) -> tuple[str, str]:
    path.write_bytes(content)
    with pytest.raises(MediaError) as error:
        probe(path)
    return error.value.kind, str(error.value)


@pytest.mark.parametrize("timescale", [1, 0xFFFFFFFF])
def test_a_time_base_that_no_camera_has_is_refused(timescale: int, content: bytearray, tmp_path: Path) -> None:
    """50 frames in 7 hours, or in 6 microseconds."""
    struct.pack_into(">I", content, content.index(b"mdhd") + 16, timescale)
    kind, message = fault_of(tmp_path / "odd.mp4", content)
    assert kind == "unreadable" and "expected 0.5 to 1000 per second and at most 24 h" in message


def test_a_sample_rate_that_no_sound_has_is_refused(tmp_path: Path) -> None:
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 1036, b"WAVE", b"fmt ", 16, 1, 1, 4 * 10**6, 8 * 10**6, 2, 16, b"data", 1000
    )
    (tmp_path / "odd.wav").write_bytes(header + bytes(1000))
    with pytest.raises(MediaError, match="4000000 sound samples per second; expected 4000 to 384000"):
        read_audio(tmp_path / "odd.wav")


def test_boxes_without_a_length_end_the_search(content: bytearray, tmp_path: Path) -> None:
    kind, message = fault_of(tmp_path / "odd.mp4", content + struct.pack(">I4s", 3, b"junk") * 1000)
    assert (kind, f"damaged at byte {len(content)}" in message) == ("unreadable", True)


def test_a_stream_without_decoder_is_unsupported(content: bytearray, tmp_path: Path) -> None:
    place = content.index(b"stsd") + 16
    assert content[place : place + 4] == b"avc1"
    content[place : place + 4] = b"what"
    assert fault_of(tmp_path / "odd.mp4", content)[0] == "unsupported"


def test_samples_of_a_span_in_closed_form(tmp_path: Path, content: bytearray) -> None:
    index = index_video(tmp_path / "whole.mp4")
    assert index.sample(None, 0.39, 0.61).tolist() == [10, 11, 12, 13, 14, 15]
    assert index.sample(5.0).tolist() == list(range(0, 50, 5))
    assert index.sample(25.0, 1.92, 99.0).tolist() == [48, 49]
    np.testing.assert_array_equal(index.sample(25.0, 3.0), [])
