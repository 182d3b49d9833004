"""Images come as they are meant to be seen: square pixels, upright, in the colours that the file states."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from common.media.display import orientation, square_size, to_rgb, transfer
from common.media.index import probe
from common.media.video import cut_clip, decode_stored, decode_video, read_frames

# red, green, blue and white corners tell every turn and mirror image apart
CORNERS = np.full((48, 64, 3), 60, np.uint8)
CORNERS[:16, :16], CORNERS[:16, -16:] = (220, 30, 30), (30, 200, 30)
CORNERS[-16:, :16], CORNERS[-16:, -16:] = (30, 30, 220), (200, 200, 200)
MATRIX = {1: Colorspace.ITU709, 6: Colorspace.ITU601, 9: Colorspace.BT2020}


def encode(
    path: Path,
    image: np.ndarray = CORNERS,
    frames: int = 1,
    aspect: tuple[int, int] | None = None,
    turn: tuple[float, bool, bool] | None = None,
    matrix: int = 1,
    full: bool = False,
    stated: bool = True,
    **flags: Any,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = *image.shape[:2], "yuv444p"
        if stated:
            context.colorspace, context.color_range, context.color_primaries = matrix, 2 if full else 1, 1
        for name, value in flags.items():
            setattr(context, name, value)
        if aspect:
            context.sample_aspect_ratio = Fraction(*aspect)
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
        for number in range(frames):
            stored = rgb.reformat(format="yuv444p", dst_colorspace=MATRIX[matrix], dst_color_range=2 if full else 1)
            stored.pts, stored.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(stored))
        container.mux(stream.encode(None))
    return path


def seen(path: Path) -> np.ndarray:
    return read_frames(path, [0])[0].astype(int)


@pytest.mark.parametrize(
    ("aspect", "turn", "size"),
    [
        ((4, 3), 0, (86, 48)),
        ((12, 11), 0, (70, 48)),
        ((1, 2), 0, (64, 96)),
        ((4, 3), 90, (48, 86)),
        ((1, 1), 90, (48, 64)),
        ((1280, 1281), 0, (64, 48)),  # a rounded size, not another shape
        ((200, 1), 0, (64, 48)),  # no format has such pixels
    ],
)
def test_pixels_are_square(aspect: tuple[int, int], turn: int, size: tuple[int, int], tmp_path: Path) -> None:
    path = encode(tmp_path / "tape.mp4", aspect=aspect, turn=(turn, False, False))
    assert (probe(path).width, probe(path).height) == size
    image = seen(path)
    assert image.shape[:2] == size[::-1]
    # what is stored is only scaled, so that the corners stay where they are
    corners = np.rot90(CORNERS, turn // 90)
    for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3)):
        assert np.abs(image[y, x] - corners[y, x]).max() < 6
    stored = next(decode_stored(path))
    assert (stored.width, stored.height) == (size if not turn else size[::-1])
    assert ("scaled to square" in probe(path).presentation) == (size not in ((64, 48), (48, 64)))


def test_a_clip_of_a_tape_has_square_pixels_and_its_crop_is_in_them(tmp_path: Path) -> None:
    source = write_tape(tmp_path / "tape.mkv")
    cut_clip(source, tmp_path / "clip.mp4", 0, 0.2)
    assert (probe(tmp_path / "clip.mp4").width, probe(tmp_path / "clip.mp4").height) == (86, 48)
    right = next(iter(decode_video(source, crop=(66, 0, 20, 16)))).astype(int)
    assert np.abs(right[4:12, 4:16] - (30, 200, 30)).max() < 6


def write_tape(path: Path) -> Path:
    """`encode` with 4:3 pixels and a mute sound."""
    video = encode(path.with_name("video.mp4"), frames=10, aspect=(4, 3))
    with av.open(str(video)) as first, av.open(str(path), "w") as joined:
        stream = joined.add_stream_from_template(first.streams.video[0])
        audio = joined.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for packet in first.demux(video=0):
            if packet.size:
                packet.stream = stream
                joined.mux(packet)
        mute = av.AudioFrame.from_ndarray(np.zeros((1, 6400), np.int16), "s16", "mono")
        mute.sample_rate, mute.pts = 16_000, 0
        joined.mux(audio.encode(mute))
    return path


def test_square_sizes_are_even_and_never_smaller() -> None:
    assert square_size(720, 576, Fraction(16, 15)) == (768, 576)
    assert square_size(1440, 1080, Fraction(4, 3)) == (1920, 1080)
    assert square_size(720, 480, Fraction(8, 9)) == (720, 540)
    for unstated in (None, Fraction(0), Fraction(1)):
        assert square_size(31, 33, unstated) == (31, 33)


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True)])
def test_every_display_matrix_is_undone(degrees: int, flip: tuple[bool, bool], tmp_path: Path) -> None:
    """ffmpeg turns counter-clockwise first and mirrors then."""
    path = encode(tmp_path / "phone.mp4", turn=(degrees, *flip))
    expected = np.rot90(CORNERS, degrees // 90 % 4)
    expected = expected[:, ::-1] if flip[0] else expected
    expected = expected[::-1] if flip[1] else expected
    assert np.abs(seen(path) - expected).max() < 6
    assert ("mirrored" in probe(path).presentation) == any(flip) == orientation(next(decode_stored(path))).mirrored


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRIX)
def test_matrix_and_range_are_those_of_the_file(matrix: int, full: bool, tmp_path: Path) -> None:
    path = encode(tmp_path / "video.mp4", matrix=matrix, full=full)
    assert np.abs(seen(path)[4::40, 4::56] - CORNERS[4::40, 4::56]).max() < 4


@pytest.mark.parametrize(("factor", "matrix"), [(1, 6), (20, 1)])
def test_an_unstated_matrix_is_that_of_its_size(factor: int, matrix: int, tmp_path: Path) -> None:
    """BT.601 for small videos, BT.709 for HD, as players take them."""
    image = np.kron(CORNERS[::4, ::4], np.ones((4 * factor, 4 * factor, 1), np.uint8))
    path = encode(tmp_path / "video.mp4", image, matrix=matrix, stated=False)
    assert probe(path).color_transfer == ""
    step = (40 * factor, 56 * factor)
    assert np.abs(seen(path)[4 :: step[0], 4 :: step[1]] - image[4 :: step[0], 4 :: step[1]]).max() < 4


@pytest.mark.parametrize(
    ("code", "name", "words"),
    [(1, "bt709", ""), (16, "smpte2084", "HDR (PQ)"), (18, "arib_std_b67", "HDR (HLG)"), (2, "", "")],
)
def test_the_transfer_is_told(code: int, name: str, words: str, tmp_path: Path) -> None:
    described = probe(encode(tmp_path / "video.mp4", matrix=9, color_trc=code))
    assert described.color_transfer == name and words in described.presentation
    assert bool(described.presentation) == bool(words)


def pq(nits: float) -> float:
    """SMPTE ST 2084."""
    y = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


@pytest.mark.soak  # libswscale's tables take 2 s
def test_hdr_is_tone_mapped_to_what_screens_show() -> None:
    """The reference white of HDR, 203 cd/m2, is white; a dim grey stays where it was to the eye."""
    levels = []
    for nits in (10, 50, 203, 1000):
        rgb = np.full((16, 16, 3), round(pq(nits) * 65535), np.uint16)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
        frame.color_trc, frame.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
        assert transfer(frame) == "smpte2084"
        levels.append(int(to_rgb(frame)[8, 8].mean()))
    assert levels[0] < 90 < 130 < levels[1] < 160 and levels[2] >= 250 and levels[3] == 255
