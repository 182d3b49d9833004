"""decord gives the frames that PyAV gives, or says in words why not."""

from pathlib import Path

import numpy as np
import pytest

from common.media.display import to_rgb
from common.media.open import MediaError
from common.media.video import decode_stored, decode_video, read_frames, read_video
from tests.common.media.test_decode import CODECS, encode, textured


@pytest.mark.parametrize("name", ["h264", "h264 open gop", "hevc", "vp9"])
def test_both_readers_see_the_same_frames(name: str, tmp_path: Path) -> None:
    codec, options, suffix = CODECS[name]
    path = encode(tmp_path / f"video{suffix}", textured(60), codec, options)
    whole = read_video(path, fps=None)
    by_decord = np.stack([to_rgb(frame) for frame in decode_stored(path, reader="decord")])
    np.testing.assert_array_equal(by_decord, whole)
    np.testing.assert_array_equal(read_frames(path, [50, 3, 3], reader="decord"), whole[[50, 3, 3]])
    some = list(decode_video(path, 0.5, 1.5, fps=10, reader="decord"))
    np.testing.assert_array_equal(np.stack(some), np.stack(list(decode_video(path, 0.5, 1.5, fps=10))))


def test_both_readers_turn_a_picture_upright(tmp_path: Path) -> None:
    path = encode(tmp_path / "phone.mp4", textured(5)[:, :32], rotation=90)
    np.testing.assert_array_equal(read_frames(path, [2], reader="decord"), read_frames(path, [2]))


@pytest.mark.parametrize(
    ("name", "flags", "what"), [("av1", {}, "AV1"), ("h264", {"flags": "+ildct+ilme"}, "interlaced")]
)
def test_what_decord_cannot_read_is_refused_in_words(name: str, flags: dict, what: str, tmp_path: Path) -> None:
    codec, options, suffix = CODECS[name]
    path = encode(tmp_path / f"video{suffix}", textured(10), codec, options | flags)
    with pytest.raises(MediaError, match=f"decord does not read {what}.*; set the reader to pyav") as error:
        read_frames(path, [0], reader="decord")
    assert error.value.kind == "unsupported" and read_frames(path, [0]).shape == (1, 64, 64, 3)


def test_a_damaged_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "video.mp4", textured(60), options={"crf": "10"})
    content = bytearray(path.read_bytes())
    begin, length = content.index(b"mdat") + len(content) // 3, len(content) // 3
    content[begin : begin + length] = bytes(length)
    path.write_bytes(content)
    with pytest.raises(MediaError) as error:
        list(decode_stored(path, reader="decord"))
    assert error.value.kind == "unreadable"
