"""What a media file holds, learnt from its packets and without decoding: streams, frame times, key frames, damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MediaFault = Literal["unreadable", "not_a_video", "truncated", "no_video", "no_audio"]

# ffmpeg opens pictures and even plain text as one-frame "videos" through these demuxers.
PICTURE_DEMUXERS = ("image2", "_pipe", "tty")
# A frame distance this far from the median makes the frame rate variable; Matroska's rounding to 1 ms stays below it.
UNEVEN_GAP = 0.2
# Outside MP4 the announced duration is the only sign of a missing end; headers are rounded and streams end unevenly.
MISSING_SECONDS = 1.0


class MediaError(ValueError):
    """A file that cannot be used as asked; `kind` says why in one word."""

    def __init__(self, kind: MediaFault, message: str) -> None:
        super().__init__(message)
        self.kind: MediaFault = kind


@dataclass(frozen=True)
class Probe:
    """What a file says about itself. Times in seconds; starts are on the container's clock.

    `duration` runs from the first frame to the end of the last one, `fps` is the average over it, `max_frame_gap` the
    longest distance between two frames. Width and height are those of the upright picture (rotation applied).
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
    variable_frame_rate: bool
    max_frame_gap: float


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
        wanted = start + np.arange(count) / fps
        after = np.clip(np.searchsorted(self.times, wanted), 1, max(1, len(self.times) - 1))
        before = after - 1
        after = np.minimum(after, len(self.times) - 1)
        # 1 ns in favour of the earlier frame: a tie between two frames must not depend on rounding.
        closer_before = wanted - self.times[before] <= self.times[after] - wanted + 1e-9
        return np.where(closer_before, before, after)


@contextmanager
def open_media(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for reading; ffmpeg's errors, on opening and while reading, become MediaError.

    Raises FileNotFoundError when the path is absent and MediaError when ffmpeg can make nothing of it.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no media file at {path}; give the path of an existing video or sound file.")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _opening_error(Path(path), error) from error
    try:
        yield container
    except av.FFmpegError as error:
        raise MediaError("unreadable", f"{path} cannot be decoded ({error.strerror}); fetch the file again.") from error
    finally:
        container.close()


def _opening_error(path: Path, error: Exception) -> MediaError:
    if not path.is_file():
        return MediaError("not_a_video", f"{path} is not a file; expected a video or sound file.")
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as denied:
        return MediaError("unreadable", f"{path} cannot be read ({denied.strerror}); check its permissions.")
    if not head:
        return MediaError("truncated", f"{path} is empty (0 bytes); fetch the file again.")
    if head[4:8] == b"ftyp":
        return MediaError("truncated", f"{path} ends before its index (no moov box found); fetch the file again.")
    if head[:4] == b"\x1a\x45\xdf\xa3" or head[:4] == b"RIFF":
        return MediaError("unreadable", f"{path} has a damaged header ({error}); fetch the file again.")
    return MediaError("not_a_video", f"{path} is in no media format known to ffmpeg; expected a video file.")


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first real video stream: cover pictures of sound files do not count."""
    if any(name in container.format.name for name in PICTURE_DEMUXERS):
        raise MediaError("not_a_video", f"{container.name} is a picture or a text, not a video.")
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(streams, None)


def probe(path: str | Path) -> Probe:
    """Describe a video from its packets, without decoding a frame.

    Raises FileNotFoundError, or MediaError of kind unreadable, not_a_video, truncated or no_video. A file without
    sound is described with `has_audio` False.
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
        _check_bytes(path, size, container)
        stream = video_stream(container)
        if stream is None:
            raise MediaError("no_video", f"{path} has no video stream; expected a video file.")
        packets = _read_packets(container, stream)
        _check_times(path, container, packets)
        order = np.argsort(packets.pts, kind="stable")
        pts = np.asarray(packets.pts, dtype=np.int64)[order]
        base = float(stream.time_base or 0)
        start, times = float(pts[0] * base), (pts - pts[0]) * base
        keys = np.flatnonzero(np.asarray(packets.keys)[order])
        stamped = container.format.name != "avi"
        return VideoIndex(
            pts, times, keys if stamped else keys[:1], start, stamped, _describe(container, stream, times, start)
        )


@dataclass
class _Packets:
    """Presentation stamps and key flags of the shown frames in file order; end of the last packet of any stream (s)."""

    pts: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    end: float = 0.0


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    packets = _Packets()
    ordered_only = container.format.name == "avi"
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None or ordered_only else packet.pts
        if stamp is None or packet.time_base is None:
            continue
        packets.end = max(packets.end, float((stamp + (packet.duration or 0)) * packet.time_base))
        # Frames before an edit list's start are decoded but never shown.
        if packet.stream_index == stream.index and not packet.is_discard:
            packets.pts.append(stamp)
            packets.keys.append(packet.is_keyframe)
    return packets


def _check_bytes(path: str, size: int, container: InputContainer) -> None:
    """Raise MediaError("truncated") when an MP4 file ends inside one of its boxes."""
    missing = _missing_bytes(path, size) if "mp4" in container.format.name else 0
    if missing > 0:
        raise MediaError(
            "truncated", f"{path} lacks its last {missing} bytes ({size} are there); fetch the file again."
        )


def _check_times(path: str, container: InputContainer, packets: _Packets) -> None:
    """Raise MediaError("truncated") when the packets end before the duration that the header announces."""
    announced = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
    if not packets.pts or announced - packets.end > MISSING_SECONDS:
        raise MediaError(
            "truncated",
            f"{path} holds {packets.end:.2f} s of the {announced:.2f} s its header announces; fetch the file again.",
        )


def _missing_bytes(path: str, size: int) -> int:
    """How far the last top-level box of an MP4 file reaches beyond the end of the file (ISO/IEC 14496-12, 4.2)."""
    position = 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(16).ljust(16, b"\0")
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # a 64-bit length follows the box type
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # the box runs to the end of the file
                return 0
            position += max(length, 8)
    return position - size


def _describe(container: InputContainer, stream: VideoStream, times: np.ndarray, start: float) -> Probe:
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1 / float(stream.average_rate or 25)
    duration = float(times[-1]) + usual
    sound = container.streams.audio[0] if container.streams.audio else None
    height, width = _first_picture_size(container, stream)
    return Probe(
        duration=duration,
        fps=len(times) / duration,
        frames=len(times),
        width=width,
        height=height,
        codec=stream.codec_context.name,
        has_audio=sound is not None,
        audio_rate=sound.rate or 0 if sound else 0,
        audio_channels=sound.channels or 0 if sound else 0,
        audio_codec=sound.codec_context.name if sound else "",
        video_start=start,
        audio_start=float((sound.start_time or 0) * (sound.time_base or 0)) if sound else 0.0,
        variable_frame_rate=bool(len(gaps) and np.abs(gaps - usual).max() > UNEVEN_GAP * usual),
        max_frame_gap=float(gaps.max()) if len(gaps) else usual,
    )


def _first_picture_size(container: InputContainer, stream: VideoStream) -> tuple[int, int]:
    """Height and width of the first frame, upright; raises MediaError when it cannot be decoded."""
    container.seek(stream.start_time or 0, stream=stream)
    frame = next(container.decode(stream), None)
    if frame is None:
        raise MediaError("unreadable", f"{container.name} yields no picture; fetch the file again.")
    return (frame.width, frame.height) if quarter_turns(frame) % 2 else (frame.height, frame.width)


def quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns counter-clockwise that put a frame upright (telephones store sideways pictures with a flag)."""
    return round(frame.rotation / 90) % 4
