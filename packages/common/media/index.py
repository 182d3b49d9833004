"""Index of a media file from its packets, without decoding: streams, frame times, key frames, damage."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from common.media.display import HDR, WIDE_GAMUT, orientation, square_size, transfer
from common.media.open import (
    MAX_PIXELS,
    STILLS,
    MediaError,
    audio_stream,
    check_bytes,
    open_decoder,
    open_media,
    video_stream,
)

# A frame distance this far from the median makes the frame rate variable; Matroska's rounding to 1 ms stays below it.
UNEVEN_GAP = 0.2
# Outside MP4 the announced duration is the only sign of a missing end; headers are rounded and streams end unevenly.
MISSING_SECONDS = 1.0
# What no recording of a person goes beyond; a damaged header may claim anything.
MAX_SECONDS = 24 * 3600.0
MAX_FRAMES = 10_000_000
FRAME_RATES = (0.5, 1000.0)  # average frames per second


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """What a file says about itself. Times in seconds; starts are on the container's clock.

    `duration` runs from the first frame to the end of the last one, `fps` is the average over it, `max_frame_gap` the
    longest distance between two frames. Width and height are those of the image as it is meant to be seen: upright,
    with square pixels; audio is the track that players play. `color_transfer` is ffmpeg's name (see
    `common.media.display.transfer`), "" where none is stated. `presentation` says in words what sets the file apart
    from one track of each kind as it is stored, "" for nothing. `interlaced` says that the first image was stored as
    two fields. Codec names are ffmpeg's: h264, hevc, vp9, av1.
    """

    duration: float
    fps: float
    frames: int
    width: int
    height: int
    codec: str
    has_audio: bool
    audio_rate: int
    audio_channels: int
    audio_codec: str
    video_start: float
    audio_start: float
    audio_end: float
    variable_frame_rate: bool
    max_frame_gap: float
    interlaced: bool
    color_transfer: str
    presentation: str


@dataclass(frozen=True)
class VideoIndex:
    """Every frame of a video in presentation order.

    `pts` (n,) int64 in units of `time_base`; `times` (n,) float64 seconds after the first frame; `keys` positions of
    the frames at which decoding can start; `start` seconds of the first frame on the container's clock. `stamped` is
    False where only the order of the frames can be trusted (AVI stores no presentation stamps).
    """

    pts: np.ndarray
    times: np.ndarray
    keys: np.ndarray
    start: float
    stamped: bool
    probe: Probe

    def sample(self, fps: float | None, start: float = 0.0, end: float | None = None) -> np.ndarray:
        """Positions of the frames nearest to start, start + 1/fps, ... before `end`; every frame there if fps is None.

        Returns (m,) int64, non-decreasing; a frame is repeated or left out where the rates differ.
        """
        stop = self.probe.duration if end is None else min(end, self.probe.duration)
        if fps is None:
            return np.flatnonzero((self.times >= start - 1e-6) & (self.times < stop - 1e-6))
        count = max(0, round((stop - start) * fps))
        grid = start + np.arange(count) / fps
        after = np.clip(np.searchsorted(self.times, grid), 1, max(1, len(self.times) - 1))
        before = after - 1
        after = np.minimum(after, len(self.times) - 1)
        # 1 ns in favour of the earlier frame: a tie between two frames must not depend on rounding.
        closer_before = grid - self.times[before] <= self.times[after] - grid + 1e-9
        return np.where(closer_before, before, after)


def probe(path: str | Path) -> Probe:
    """Describe a video from its packets, without decoding a frame.

    Raises FileNotFoundError, or MediaError of kind unreadable, not_a_video, truncated or no_video. A file without
    audio is described with `has_audio` False.
    """
    return index_video(path).probe


def index_video(path: str | Path) -> VideoIndex:
    """List a video's frames once; asking again for the same unchanged file is free. Raises what `probe` raises."""
    try:
        status = os.stat(path)
    except OSError:
        status = None  # open_media words the error
    return _index(str(path), status.st_size if status else 0, status.st_mtime_ns if status else 0)


@lru_cache(maxsize=16)
def _index(path: str, size: int, _mtime: int) -> VideoIndex:
    with open_media(path) as container:
        check_bytes(path, size, container)
        stream = video_stream(container)
        if stream is None:
            raise MediaError("no_video", f"{path} has no video stream; expected a video file.")
        packets = _read_packets(container, stream)
        _check_times(path, container, packets)
        # Two packets with one stamp are the two fields of one image, or damage.
        pts, first = np.unique(np.asarray(packets.pts, dtype=np.int64), return_index=True)
        base = float(stream.time_base or 0)
        start, times = float(pts[0] * base), (pts - pts[0]) * base
        keys = np.flatnonzero(np.asarray(packets.keys)[first])
        if not len(keys):
            raise MediaError("unreadable", f"{path} has no key frame to start from; fetch the file again.")
        stamped = container.format.name != "avi"
        return VideoIndex(
            pts,
            times,
            keys if stamped else keys[:1],
            start,
            stamped,
            _describe(container, stream, times, start, packets.ends),
        )


@dataclass
class _Packets:
    """Presentation stamps and key flags of the shown frames in file order; end of the last packet (s) by stream."""

    pts: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    ends: dict[int, float] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """End of the last packet of any stream."""
        return max(self.ends.values(), default=0.0)


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    packets = _Packets()
    ordered_only = container.format.name == "avi"
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None or ordered_only else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        end = float((stamp + (packet.duration or 0)) * packet.time_base)
        packets.ends[packet.stream_index] = max(packets.ends.get(packet.stream_index, 0.0), end)
        # Frames before an edit list's start are decoded but never shown.
        if packet.stream_index == stream.index and not packet.is_discard:
            packets.pts.append(stamp)
            packets.keys.append(packet.is_keyframe)
            if len(packets.pts) > MAX_FRAMES:
                raise MediaError("unreadable", f"{container.name} has over {MAX_FRAMES} frames; split the file.")
    return packets


def _check_times(path: str, container: InputContainer, packets: _Packets) -> None:
    """Raise MediaError("truncated") when the packets end before the duration that the header announces."""
    announced = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
    if not packets.pts or announced - packets.end > MISSING_SECONDS:
        raise MediaError(
            "truncated",
            f"{path} holds {packets.end:.2f} s of the {announced:.2f} s its header announces; fetch the file again.",
        )


def _describe(
    container: InputContainer, stream: VideoStream, times: np.ndarray, start: float, ends: Mapping[int, float]
) -> Probe:
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1 / float(stream.average_rate or 25)
    duration = float(times[-1]) + usual
    _check_rates(container, len(times), duration)
    audio = audio_stream(container)
    first_frame = _first_frame(container, stream)
    shown = square_size(first_frame.width, first_frame.height, stream.sample_aspect_ratio)
    if shown[0] * shown[1] > MAX_PIXELS:
        raise MediaError("unreadable", f"{container.name} is {shown[0]}x{shown[1]} px; expected at most {MAX_PIXELS}.")
    width, height = shown[::-1] if orientation(first_frame).turns % 2 else shown
    presentation = ", ".join(_special(container, stream, audio, first_frame, shown))
    if presentation:
        logger.info("%s: %s", container.name, presentation)
    return Probe(
        duration=duration,
        fps=len(times) / duration,
        frames=len(times),
        width=width,
        height=height,
        codec=stream.codec_context.codec.canonical_name,
        has_audio=audio is not None,
        audio_rate=audio.rate if audio else 0,
        audio_channels=audio.channels or 0 if audio else 0,
        audio_codec=audio.codec_context.codec.canonical_name if audio else "",
        video_start=start,
        audio_start=float((audio.start_time or 0) * (audio.time_base or 0)) if audio else 0.0,
        audio_end=ends.get(audio.index, 0.0) if audio else 0.0,
        variable_frame_rate=bool(len(gaps) and np.abs(gaps - usual).max() > UNEVEN_GAP * usual),
        max_frame_gap=float(gaps.max()) if len(gaps) else usual,
        interlaced=bool(first_frame.interlaced_frame),
        color_transfer=transfer(first_frame),
        presentation=presentation,
    )


def _special(
    container: InputContainer, stream: VideoStream, audio: AudioStream | None, frame: VideoFrame, shown: tuple[int, int]
) -> Iterator[str]:
    """What sets the images and the audio apart from one track as it is stored, in words."""
    if shown != (frame.width, frame.height):
        yield f"{frame.width}x{frame.height} stored pixels are {stream.sample_aspect_ratio} wide, scaled to square ones"
    if orientation(frame).mirrored:
        yield "mirrored, as its display matrix says"
    if frame.color_trc in HDR:
        yield f"HDR ({HDR[ColorTrc(frame.color_trc)]}), tone-mapped to standard range"
    elif frame.color_primaries in WIDE_GAMUT:
        yield "wide gamut, mapped to BT.709"
    for one in (stream, audio):
        if one is not None:
            same = [other for other in container.streams if other.type == one.type]
            tracks = [other.index for other in same if not other.disposition & STILLS]
            if one.index != tracks[0]:
                yield f"{one.type} track {tracks.index(one.index) + 1} of {len(tracks)}"
    if audio is not None and (audio.channels or 0) > 2:
        yield f"{audio.channels} audio channels mixed to mono"


def _check_rates(container: InputContainer, frames: int, duration: float) -> None:
    """Raise MediaError for frame times that no camera makes."""
    least, most = FRAME_RATES
    if not 0 < duration <= MAX_SECONDS or not least <= frames / duration <= most:
        raise MediaError(
            "unreadable",
            f"{container.name} claims {frames} frames in {duration:.3f} s; expected {least:g} to {most:g} per second "
            f"and at most {MAX_SECONDS / 3600:g} h: fetch the file again.",
        )


def _first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame:
    """The first image; raises MediaError when it cannot be decoded."""
    open_decoder(stream)
    container.seek(stream.start_time or 0, stream=stream)
    frame = next(container.decode(stream), None)
    if frame is None:
        raise MediaError("unreadable", f"{container.name} yields no picture; fetch the file again.")
    return frame
