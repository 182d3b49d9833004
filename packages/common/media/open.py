"""Opening of untrusted media: every ffmpeg error becomes a MediaError, and header claims are validated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from common.errors import MissingFileError, UserError

MediaFault = Literal["unreadable", "not_a_video", "truncated", "no_video", "no_audio", "unsupported"]

# ffmpeg opens images and even plain text as one-frame "videos" through these demuxers.
PICTURE_DEMUXERS = ("image2", "_pipe", "tty")

# What no recording of a person goes beyond; a damaged header may claim anything.
MAX_PIXELS = 40_000_000  # of one image: 8K has 33 million
SOUND_RATES = (4_000, 384_000)  # samples per second
MAX_BOXES = 1_000_000

AnyStream = TypeVar("AnyStream", AudioStream, VideoStream)


class MediaError(UserError, ValueError):
    """A file that cannot be used as asked; `kind` says why in one word."""

    def __init__(self, kind: MediaFault, message: str) -> None:
        super().__init__(message)
        self.kind: MediaFault = kind


@contextmanager
def open_media(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for reading; ffmpeg's errors, on opening and while reading, become MediaError.

    Raises FileNotFoundError when the path is absent and MediaError when ffmpeg can make nothing of it.
    """
    if not os.path.exists(path):
        raise MissingFileError(f"There is no media file at {path}; give the path of an existing video or sound file.")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise _opening_error(Path(path), error) from error
    try:
        yield container
    except (av.FFmpegError, MemoryError) as error:
        why = getattr(error, "strerror", None) or "not enough memory"
        raise MediaError("unreadable", f"{path} cannot be decoded ({why}); fetch the file again.") from error
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
    """The first real video stream: cover images of audio files do not count."""
    if any(name in container.format.name for name in PICTURE_DEMUXERS):
        raise MediaError("not_a_video", f"{container.name} is a picture or a text, not a video.")
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return _decodable(container, next(streams, None))


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first audio stream; MediaError for one that cannot be decoded or has a sample rate that no audio has."""
    stream = _decodable(container, next(iter(container.streams.audio), None))
    if stream is not None and not SOUND_RATES[0] <= (stream.rate or 0) <= SOUND_RATES[1]:
        raise MediaError(
            "unreadable",
            f"{container.name} claims {stream.rate} sound samples per second; expected {SOUND_RATES[0]} to "
            f"{SOUND_RATES[1]}: fetch the file again.",
        )
    return stream


def _decodable(container: InputContainer, stream: AnyStream | None) -> AnyStream | None:
    if stream is not None and stream.codec_context is None:
        raise MediaError("unsupported", f"{container.name}: no decoder for its {stream.type} stream; convert the file.")
    return stream


def check_bytes(path: str, size: int, container: InputContainer) -> None:
    """Raise MediaError("truncated") when an MP4 file ends inside one of its boxes, "unreadable" for no such box."""
    missing = _missing_bytes(path, size) if "mp4" in container.format.name else 0
    if missing > 0:
        raise MediaError(
            "truncated", f"{path} lacks its last {missing} bytes ({size} are there); fetch the file again."
        )


def _missing_bytes(path: str, size: int) -> int:
    """How far the last top-level box of an MP4 file reaches beyond the end of the file (ISO/IEC 14496-12, 4.2)."""
    position = 0
    with open(path, "rb") as file:
        for _ in range(MAX_BOXES):
            if position >= size:
                return position - size
            file.seek(position)
            header = file.read(16).ljust(16, b"\0")
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # a 64-bit length follows the box type
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # the box runs to the end of the file
                return 0
            if length < 8:
                break
            position += length
    raise MediaError("unreadable", f"{path} is damaged at byte {position}: no box begins there; fetch the file again.")


def open_decoder(stream: VideoStream) -> None:
    """Make a stream ready to decode on one thread, no image larger than MAX_PIXELS.

    Some decoders read `skip_frame` only while they open, so this comes before it is set.
    """
    context = stream.codec_context
    if not context.is_open:
        stream.thread_type, context.thread_count = "NONE", 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.open(strict=False)
