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

# The demuxers that may read a foreign file: recordings of sound or images that hold their data themselves. Not those
# that read other files (concat, hls, dash, playlists, SDP), devices, pictures, subtitles, or any text as a video (tty).
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,gxf,nut,dv,rm,ivf,obu,"
    "av1,h264,hevc,vvc,m4v,h263,mjpeg,gif,apng,yuv4mpegpipe,wav,w64,aiff,caf,au,voc,mp3,aac,loas,flac,ape,wv,tta,amr,"
    "ac3,eac3,ac4,dts,dtshd,truehd,mlp,mpc,mpc8,dsf,oma,gsm,iff"
)

# What no recording of a person goes beyond; a damaged header may claim anything.
MAX_PIXELS = 40_000_000  # of one image: 8K has 33 million
SOUND_RATES = (4_000, 384_000)  # samples per second
MAX_CHANNELS = 64  # libswresample mixes no more
MAX_BOXES = 1_000_000

# Images that are not the video, and tracks that are not meant for everybody.
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
FOR_SOME = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.descriptions
    | Disposition.karaoke
    | Disposition.clean_effects
    | Disposition.non_diegetic
    | Disposition.dependent
)

AnyStream = TypeVar("AnyStream", AudioStream, VideoStream)


class MediaError(UserError, ValueError):
    """A file that cannot be used as asked; `kind` says why in one word."""

    def __init__(self, kind: MediaFault, message: str) -> None:
        super().__init__(message)
        self.kind: MediaFault = kind


@contextmanager
def open_media(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for reading; ffmpeg's errors, on opening and while reading, become MediaError.

    Every medium is opened here: by a demuxer of `DEMUXERS`, from this one local file and no other. Raises
    FileNotFoundError when the path is absent and MediaError when ffmpeg can make nothing of it.
    """
    if not os.path.exists(path):
        raise MissingFileError(f"There is no media file at {path}; give the path of an existing video or sound file.")
    if not os.path.isfile(path):  # a pipe or a device may never end
        raise MediaError("not_a_video", f"{path} is not a file; expected a video or sound file.")
    allowed = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    # No protocol's name can stand before a path from the root: "concat:a|b" and "subfile,,...:a" are legal file names.
    place = os.path.join(os.getcwd(), path)
    try:
        container = av.open(place, options=allowed, metadata_errors="ignore")
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
        return MediaError("unreadable", f"{path} has a damaged header; fetch the file again.")
    return MediaError(
        "not_a_video", f"{path} is in none of the formats that are read; expected video or sound, say an mp4."
    )


def video_stream(container: InputContainer) -> VideoStream | None:
    """The images that a player shows; None where there are none but cover images and thumbnails."""
    return _played(container, [s for s in container.streams.video if not s.disposition & STILLS])


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The audio that a player plays; MediaError for one that cannot be decoded or claims what no audio has."""
    stream = _played(container, list(container.streams.audio))
    if stream is not None:
        check_audio(container, stream.rate or 0, stream.channels or 0)
    return stream


def check_audio(container: InputContainer, rate: int, channels: int) -> None:
    """Raise MediaError for a sample rate or a number of channels that no audio has."""
    if not SOUND_RATES[0] <= rate <= SOUND_RATES[1]:
        raise MediaError(
            "unreadable",
            f"{container.name} claims {rate} sound samples per second; expected {SOUND_RATES[0]} to "
            f"{SOUND_RATES[1]}: fetch the file again.",
        )
    if channels > MAX_CHANNELS:
        raise MediaError(
            "unsupported", f"{container.name} has {channels} sound channels; expected at most {MAX_CHANNELS}."
        )


def _played(container: InputContainer, streams: list[AnyStream]) -> AnyStream | None:
    """The first stream that is marked as default, else the first that is made for everybody; one with a decoder."""
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if streams and not decodable:
        raise MediaError(
            "unsupported", f"{container.name}: no decoder for its {streams[0].type} stream; convert the file."
        )
    # min keeps the first of equals
    return min(
        decodable,
        key=lambda s: (not s.disposition & Disposition.default, bool(s.disposition & FOR_SOME)),
        default=None,
    )


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
