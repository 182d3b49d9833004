"""Decode chosen frames of a video, exactly and with as little work as the stream allows.

Where a frame is wanted, the decoder starts at the key frame before it and leaves out images that no other image
refers to (a third to two thirds of an ordinary stream), which changes no bit of the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from common.media.index import VideoIndex, quarter_turns
from common.media.open import MediaError, open_decoder, open_media, video_stream

# One image out for each image in; images that are not flagged as two fields pass untouched.
DEINTERLACE = "mode=send_frame:parity=auto:deint=interlaced"
SEEK_EARLIER = (0.0, 1.0)  # s; MPEG-TS finds by stamp only the packet after
PLANAR = ("yuv420p", "yuvj420p")


def stored_frames(path: str | Path, index: VideoIndex, positions: np.ndarray) -> Iterator[VideoFrame]:
    """Decode each distinct position of `positions` (presentation order) once, in order, without interlacing.

    Frames keep their stored format and rotation flag; all have the size of the first. Raises MediaError: truncated
    where the file ends early.
    """
    requested = np.unique(positions)
    with open_media(path) as container:
        stream = video_stream(container)
        assert stream is not None  # the index exists, so the stream does
        open_decoder(stream)
        if index.probe.interlaced:
            frames = _deinterlaced(container, stream, index, requested)
        else:
            frames = _frames_at(container, stream, index, requested)
        for frame in frames:
            yield _of_first_size(frame, index)


def _of_first_size(frame: VideoFrame, index: VideoIndex) -> VideoFrame:
    width, height = index.probe.width, index.probe.height
    if quarter_turns(frame) % 2:
        width, height = height, width
    return frame if (frame.width, frame.height) == (width, height) else frame.reformat(width, height)


def _frames_at(
    container: InputContainer, stream: VideoStream, index: VideoIndex, requested: np.ndarray
) -> Iterator[VideoFrame]:
    if not index.stamped:
        yield from _one_after_another(container.name, index, requested)
        return
    for key, positions in _runs(index, requested):
        frames = _run_frames(container, stream, index, key, positions)
        for position in positions:
            frame = next(frames, None)
            if frame is None or _stamp(frame) != index.pts[position]:
                # The stream does not keep what its key frames promise: decode all of it.
                yield from _one_after_another(container.name, index, requested[requested >= position])
                return
            yield frame


def _runs(index: VideoIndex, requested: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Key frame to start from, and the positions to decode on the way from there; a new run where a jump saves work."""
    before = np.maximum(np.searchsorted(index.keys, requested, side="right") - 1, 0)
    keys = index.keys[before]
    jumps = np.flatnonzero(keys[1:] > requested[:-1] + 1) + 1
    for first, last in pairwise([0, *jumps.tolist(), len(requested)]):
        if first < last:
            yield int(keys[first]), requested[first:last]


def _run_frames(
    container: InputContainer, stream: VideoStream, index: VideoIndex, key: int, positions: np.ndarray
) -> Iterator[VideoFrame]:
    """The frames at `positions`, as far as the decoder gives them out."""
    context = stream.codec_context
    targets = set(index.pts[positions].tolist())
    unsent = set(targets)
    # Before the first key frame the container still stands at its beginning.
    packets = (
        _packets_from(container, stream, int(index.pts[key])) if key > index.keys[0] else _packets(container, stream)
    )
    for packet in packets:
        context.skip_frame = "DEFAULT" if _stamp(packet) in targets else "NONREF"
        unsent.discard(_stamp(packet))
        yield from (frame for frame in context.decode(packet) if _stamp(frame) in targets)
        if not unsent:
            break
    context.skip_frame = "DEFAULT"
    # What is in the decoder comes out without any further packet.
    yield from (frame for frame in context.decode(None) if _stamp(frame) in targets)
    context.flush_buffers()


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    return (packet for packet in container.demux(stream) if packet.size)  # the last, empty one marks the end


def _packets_from(container: InputContainer, stream: VideoStream, key: int) -> Iterator[Packet]:
    """Packets from the key frame stamped `key`; none where the container cannot find it."""
    for early in SEEK_EARLIER:
        container.seek(key - int(early / (stream.time_base or 1)), stream=stream)
        packets = _packets(container, stream)
        for packet in packets:
            if _stamp(packet) >= key:
                break
        else:
            continue
        if _stamp(packet) == key:
            yield packet
            yield from packets
            return


def _one_after_another(path: str, index: VideoIndex, requested: np.ndarray) -> Iterator[VideoFrame]:
    """Decode a file from its beginning and pick the frames at or next after `requested`.

    Raises MediaError("truncated") when the file ends before the last.
    """
    with open_media(path) as container:
        stream = video_stream(container)
        assert stream is not None
        open_decoder(stream)
        frames = enumerate(container.decode(stream))
        numbered = ((_position(index, frame) if index.stamped else number, frame) for number, frame in frames)
        reached, frame = -1, None
        for position in requested:
            while frame is None or reached < position:
                reached, frame = next(numbered, (-1, None))
                if frame is None:
                    raise MediaError(
                        "truncated", f"{path} ends before frame {position} of {len(index.pts)}; fetch the file again."
                    )
            yield frame


def _position(index: VideoIndex, frame: VideoFrame) -> int:
    return int(np.searchsorted(index.pts, _stamp(frame)))


def _stamp(timed: VideoFrame | Packet) -> int:
    return (timed.dts if timed.pts is None else timed.pts) or 0


def _deinterlaced(
    container: InputContainer, stream: VideoStream, index: VideoIndex, requested: np.ndarray
) -> Iterator[VideoFrame]:
    """Frames with both fields brought to one moment; bwdif looks at their neighbours, so these are decoded too."""
    near = np.unique(np.clip(np.concatenate([requested - 1, requested, requested + 1]), 0, len(index.pts) - 1))
    chosen = np.isin(near, requested)
    frames = _frames_at(container, stream, index, near)
    ends = np.flatnonzero(np.diff(near) > 1) + 1
    for first, last in pairwise([0, *ends.tolist(), len(near)]):
        row = (next(frames) for _ in range(last - first))
        yield from (frame for frame, asked in zip(_bwdif(row), chosen[first:last], strict=False) if asked)


def _bwdif(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Successive frames through ffmpeg's deinterlacing filter: one frame out for each in."""
    graph: Graph | None = None
    for frame in frames:
        if graph is None:
            graph = _bwdif_graph(frame)
        graph.vpush(frame)
        yield from _ready(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _ready(graph)


def _bwdif_graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("bwdif", DEINTERLACE), graph.add("buffersink")).configure()
    return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    try:
        while True:
            yield graph.vpull()
    except (av.BlockingIOError, av.EOFError):  # nothing more for now; nothing more at all
        return


def to_rgb(
    frame: VideoFrame, size: tuple[int, int] | None = None, crop: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """The upright image (H, W, 3) uint8 RGB; `crop` is x, y, width, height in it, `size` the width and height after.

    Raises ValueError for a crop that reaches out of the image.
    """
    turns = quarter_turns(frame)
    if crop is None and not turns:
        return _scaled(frame, size)
    image: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), turns)
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
    """One for all frames of a thread: a frame by itself sets up a new one, a fifth of the cost of its conversion."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_SCALER = _Scaler()


def _scaled(frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    change = _SCALER.reformatter.reformat
    if size is None:
        return change(frame, format="rgb24").to_ndarray()
    method = "AREA" if size[0] <= frame.width else "BICUBIC"
    return change(frame, size[0], size[1], "rgb24", interpolation=method).to_ndarray()


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
