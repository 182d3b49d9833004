"""How stored images are meant to be seen: pixel shape, orientation, colours; used through common.media.video."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter

PLANAR = ("yuv420p", "yuvj420p")
# Pixels nearer to square than this are left alone: sizes are rounded, and scaling costs sharpness.
ALMOST_SQUARE = 0.005
# Wider or taller pixels than any format has: a damaged header.
MAX_PIXEL_ASPECT = Fraction(4)
HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
HDR_TRANSFERS = frozenset(kind.name.lower() for kind in HDR)
WIDE_GAMUT = (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432)
UNSPECIFIED_MATRIX = 2
HD_SIDES = (1280, 577)  # px, from which a video that does not name its matrix is BT.709, as players take it


class Orientation(NamedTuple):
    """Mirrored left to right first, then quarter turns counter-clockwise, and a stored image is upright."""

    mirrored: bool
    turns: int


def orientation(frame: VideoFrame) -> Orientation:
    """What the display matrix says (telephones store sideways images with a flag)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation(False, 0)
    a, b, _, c, d = np.frombuffer(bytes(cast(Buffer, matrix)), np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return Orientation(mirrored, -round(np.arctan2(b, a) / (np.pi / 2)) % 4)


def square_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Width and height with square pixels of an image whose pixels are `pixel_aspect` times as wide as high.

    Nothing is made smaller, and a side that grows becomes even, as video files need it.
    """
    aspect = pixel_aspect or Fraction(1)
    if abs(aspect - 1) < ALMOST_SQUARE or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return width, height
    if aspect > 1:
        return 2 * round(width * aspect / 2), height
    return width, 2 * round(height / aspect / 2)


def of_size(frame: VideoFrame, width: int, height: int) -> VideoFrame:
    """The frame at another size, in its stored format and with its flags; itself where it has that size."""
    if (frame.width, frame.height) == (width, height):
        return frame
    form = "rgb24" if frame.format.name == "pal8" else None  # a palette cannot be interpolated
    return frame.reformat(width, height, form, interpolation="BICUBIC")


def transfer(frame: VideoFrame) -> str:
    """Transfer of the colours by ffmpeg's name (bt709, smpte2084, arib_std_b67, ...); "" where it is not stated."""
    stated = frame.color_trc in set(ColorTrc) and frame.color_trc != ColorTrc.UNSPECIFIED
    return ColorTrc(frame.color_trc).name.lower() if stated else ""


def to_rgb(
    frame: VideoFrame, size: tuple[int, int] | None = None, crop: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """The upright image (H, W, 3) uint8 RGB (BT.709, standard range); `crop` is x, y, width, height in it, `size` the
    width and height after.

    Matrix and range are those of the frame; HDR and wide gamut are tone-mapped. Raises ValueError for a crop that
    reaches out of the image.
    """
    frame = _standard_colours(frame)
    mirrored, turns = orientation(frame)
    if crop is None and not turns and not mirrored:
        return _scaled(frame, size)
    image = _scaled(frame, None)
    image = np.rot90(image[:, ::-1] if mirrored else image, turns)
    if crop is not None:
        x, y, width, height = crop
        if not (0 <= x < x + width <= image.shape[1] and 0 <= y < y + height <= image.shape[0]):
            raise ValueError(
                f"The crop {tuple(crop)} (x, y, width, height) does not lie inside a picture of "
                f"{image.shape[1]}x{image.shape[0]}; expected whole pixels of the source."
            )
        image = image[y : y + height, x : x + width]
    image = np.ascontiguousarray(image)
    return image if size is None else _scaled(VideoFrame.from_ndarray(image, format="rgb24"), size)


class _Scaler(threading.local):
    """One for all frames of a thread: a frame by itself sets up a new one, a fifth of the cost of its conversion.

    Tone mapping has its own, whose tables take 2 s.
    """

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()
        self.tone_mapper = VideoReformatter()


_SCALER = _Scaler()


def _standard_colours(frame: VideoFrame) -> VideoFrame:
    """HDR or a wide gamut -> RGB of BT.709 at the same size, by libswscale's perceptual mapping."""
    hdr = frame.color_trc in HDR
    if not hdr and frame.color_primaries not in WIDE_GAMUT:
        return frame
    if hdr and frame.color_primaries not in WIDE_GAMUT:
        frame.color_primaries = ColorPrimaries.BT2020
    if not transfer(frame):
        frame.color_trc = ColorTrc.BT709
    return _SCALER.tone_mapper.reformat(
        frame, format="rgb24", dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709, threads=1
    )


def _scaled(frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    width, height = size or (frame.width, frame.height)
    method = None if size is None else "AREA" if width <= frame.width else "BICUBIC"
    # swscale would take BT.601 for what states no matrix.
    hd = frame.colorspace == UNSPECIFIED_MATRIX and (frame.width >= HD_SIDES[0] or frame.height >= HD_SIDES[1])
    matrix = Colorspace.ITU709 if hd else None
    changed = _SCALER.reformatter.reformat(frame, width, height, "rgb24", matrix, interpolation=method)
    return changed.to_ndarray()


def planes(frame: VideoFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luma (H, W) and the two chroma planes (H/2, W/2) uint8 as they are stored: views, valid while `frame` lives.

    What is stored otherwise (10 bits, 4:4:4, RGB) is brought to this form first. Rotation is not applied.
    """
    if frame.format.name not in PLANAR:
        frame = frame.reformat(format="yuv420p")
    luma, blue, red = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    )
    return luma, blue, red
