"""Decode chosen frames of a video, exactly and with as little work as the stream allows.

Where a frame is wanted, the decoder starts at the key frame before it and leaves out images that no other image
refers to (a third to two thirds of an ordinary stream), which changes no bit of the others.
"""

from __future__ import annotations

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
from av.video.stream import VideoStream

from common.media.display import of_size, orientation
from common.media.index import VideoIndex
from common.media.open import MediaError, open_decoder, open_media, video_stream

# One image out for each image in; images that are not flagged as two fields pass untouched.
DEINTERLACE = "mode=send_frame:parity=auto:deint=interlaced"
SEEK_EARLIER = (0.0, 1.0)  # s; MPEG-TS finds by stamp only the packet after


def stored_frames(path: str | Path, index: VideoIndex, positions: np.ndarray) -> Iterator[VideoFrame]:
    """Decode each distinct position of `positions` (presentation order) once, in order, without interlacing.

    Frames keep their stored format and rotation flag; all have square pixels and the size of the first. Raises
    MediaError: truncated where the file ends early.
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
            yield of_display_size(frame, index)


def of_display_size(frame: VideoFrame, index: VideoIndex) -> VideoFrame:
    """The frame with square pixels and of the size of the first, not turned."""
    width, height = index.probe.width, index.probe.height
    return of_size(frame, *((height, width) if orientation(frame).turns % 2 else (width, height)))


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
