"""ClipFeatures a video up and fetch its streams whole: the one file that knows yt-dlp.

No ffmpeg program is needed: pictures and sound that a site keeps apart are put into one file packet by packet, with
the times they had, so that neither is re-encoded nor moved against the other.
"""

import heapq
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from yt_dlp import YoutubeDL
from yt_dlp.networking.exceptions import network_exceptions
from yt_dlp.utils import DownloadError, YoutubeDLError
from yt_dlp.version import __version__ as YT_DLP_VERSION

from common.errors import MissingFileError
from common.runs import disk_guard
from curation.config import EgressConfig
from curation.download.errors import Failure, FailureClass, classify

logger = logging.getLogger(__name__)
Info = dict[str, Any]

# Pictures and sound apart, both in one, or whatever there is: the check of the file has the last word.
FORMATS = "bv*+ba/b/bv*/ba"
SORT_NAMES = {"h264": "h264", "vp9": "vp9", "av1": "av01"}
SOCKET_SECONDS = 20.0
LONGEST_BACK_OFF = 60.0
IN_MP4 = ({"h264", "hevc", "av1", "vp9"}, {"aac", "opus", "mp3"})
LIVE = ("is_live", "is_upcoming", "post_live")


class _Quiet:
    """yt-dlp's words go to the log; those that matter come as exceptions."""

    debug = info = warning = error = staticmethod(partial(logger.debug, "%s"))


class Site:
    """yt-dlp behind one exit. Its errors become `Failure`; a full disk is a DiskFullError."""

    def __init__(
        self, exit: EgressConfig, cache: Path, max_height: int, prefer_codec: str, tries: int, backoff: float
    ) -> None:
        if exit.cookies and not Path(exit.cookies).expanduser().is_file():
            raise MissingFileError(
                f"The cookies {exit.cookies} of exit {exit.name} do not exist; export them, or drop them."
            )
        self._ydl = YoutubeDL(_options(exit, cache, max_height, prefer_codec, tries, backoff))

    def look_up(self, url: str) -> Info:
        """What the site says about one video, its streams chosen; nothing is fetched."""
        info: Info = self._guarded(self._ydl.extract_info, url, download=False)
        check_usable(url, info)
        return info

    def fetch(self, info: Info, folder: Path, stem: str) -> Path:
        """Fetch the chosen streams into `folder`, going on where a killed fetch stopped; returns one whole file.

        The file is named after `stem` and the streams; what is half done ends in .part.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pieces = [self._piece(info, stream, folder, stem) for stream in streams(info)]
        if len(pieces) == 1:
            return pieces[0]
        try:
            joined = folder / f"{stem}.joined{_suffix_of_join(*pieces)}"
            with disk_guard(joined):
                join_streams(pieces[0], pieces[1], joined)
        except Failure:
            _remove(pieces)  # the next try begins from nothing
            raise
        _remove(pieces)
        return joined

    def _piece(self, info: Info, stream: Info, folder: Path, stem: str) -> Path:
        name = re.sub(r"[^\w.-]", "_", f"{stem}.f{stream['format_id']}.{stream['ext']}")
        wanted = {key: value for key, value in info.items() if key != "requested_formats"} | stream
        whole, _ = self._guarded(self._ydl.dl, str(folder / name), wanted)
        if not whole:
            raise Failure(FailureClass.NETWORK, f"the download of {wanted['url']} did not finish")
        return folder / name

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            with disk_guard():
                return call(*arguments, **options)
        except (YoutubeDLError, *network_exceptions, TimeoutError, ConnectionError) as error:
            message = " ".join(str(error).removeprefix("ERROR: ").split())
            kind = classify(message)
            # Exceptions of the network that are raised bare have no words of their own.
            bare = kind is FailureClass.UNKNOWN and not isinstance(error, DownloadError)
            raise Failure(FailureClass.NETWORK if bare else kind, message) from error


def _options(
    exit: EgressConfig, cache: Path, max_height: int, prefer_codec: str, tries: int, backoff: float
) -> dict[str, Any]:
    growing = partial(_back_off, backoff)
    return {
        "quiet": True, "noprogress": True, "logger": _Quiet(), "color": "never", "cachedir": str(cache),
        "format": FORMATS, "format_sort": [f"res:{max_height}", f"vcodec:{SORT_NAMES[prefer_codec]}", "acodec:aac"],
        "noplaylist": True, "fixup": "never", "updatetime": False, "skip_unavailable_fragments": False,
        "proxy": exit.proxy or None, "source_address": exit.source_address or None,
        "cookiefile": str(Path(exit.cookies).expanduser()) if exit.cookies else None,
        "ratelimit": exit.max_bytes_per_second or None, "throttledratelimit": exit.min_bytes_per_second or None,
        "sleep_interval_requests": exit.request_pause_seconds, "socket_timeout": SOCKET_SECONDS,
        "retries": tries - 1, "fragment_retries": tries - 1, "extractor_retries": tries - 1,
        "retry_sleep_functions": {"http": growing, "fragment": growing, "extractor": growing},
        # YouTube's signatures are a program; any of these can run it.
        "js_runtimes": {"deno": {}, "node": {}, "bun": {}, "quickjs": {}},
    }  # fmt: skip


def _back_off(seconds: float, n: int) -> float:
    return min(LONGEST_BACK_OFF, seconds * 2.0**n)


def _remove(pieces: Sequence[Path]) -> None:
    for piece in pieces:
        piece.unlink()


def check_usable(url: str, info: Info | None) -> None:
    """Raises Failure for what is no single video, is not finished yet, or is known to have no sound."""
    if not info or "entries" in info:
        raise Failure(FailureClass.NO_MEDIA, f"{url} is a list of videos; expected the address of one.")
    if info.get("live_status") in LIVE:
        raise Failure(FailureClass.NOT_READY, f"{url} is a live broadcast that has not become a video yet.")
    if all(stream.get("acodec") == "none" for stream in streams(info)):
        raise Failure(FailureClass.NO_MEDIA, f"{url} has no sound; expected a talking person.", "no_audio")


def streams(info: Info) -> list[Info]:
    """The streams that were chosen: one with pictures and sound, or the pictures and then the sound."""
    return info.get("requested_formats") or [info]


def describe(info: Info) -> dict[str, Any]:
    """What to keep of it: address, streams, size and length as announced (None where the site does not say)."""
    chosen = streams(info)
    sizes = [size for one in chosen if (size := one.get("filesize") or one.get("filesize_approx"))]
    codecs = [stream.get(kind) for kind in ("vcodec", "acodec") for stream in chosen]
    return {
        "url": info.get("webpage_url"),
        "format_id": "+".join(str(stream.get("format_id")) for stream in chosen),
        "codecs": [codec for codec in codecs if codec and codec != "none"],
        "height": chosen[0].get("height"),
        "duration": info.get("duration"),
        "bytes": int(sum(sizes)) if len(sizes) == len(chosen) else None,
        "yt_dlp": YT_DLP_VERSION,
    }


def join_streams(pictures: Path, sound: Path, target: Path) -> None:
    """Copy the packets of a video stream and of a sound stream into one file, with the times they have."""
    try:
        with av.open(str(pictures)) as first, av.open(str(sound)) as second, av.open(str(target), "w") as joined:
            sources: list[tuple[InputContainer, Stream]] = [(first, first.streams.video[0])]
            sources.append((second, second.streams.audio[0]))
            copies = [joined.add_stream_from_template(stream) for _, stream in sources]
            flows = [_packets(*source, copy) for source, copy in zip(sources, copies, strict=True)]
            for _, _, packet in heapq.merge(*flows, key=lambda item: item[:2]):
                joined.mux(packet)
    except (av.FFmpegError, IndexError) as error:
        raise Failure(
            FailureClass.POST_CHECK, f"{pictures.name} and {sound.name} cannot be joined ({error})"
        ) from error


def _packets(container: InputContainer, stream: Stream, copy: Stream) -> Iterator[tuple[Fraction, int, Packet]]:
    for packet in container.demux(stream):
        if packet.dts is not None:  # the last one is empty
            time = packet.dts * packet.time_base
            packet.stream = copy
            yield time, copy.index, packet


def _suffix_of_join(pictures: Path, sound: Path) -> str:
    try:
        with av.open(str(pictures)) as first, av.open(str(sound)) as second:
            codecs = [source.codec_context.codec for source in (first.streams.video[0], second.streams.audio[0])]
    except (av.FFmpegError, IndexError) as error:
        raise Failure(FailureClass.POST_CHECK, f"{pictures.name} or {sound.name} cannot be read ({error})") from error
    usual = all(codec.canonical_name in known for codec, known in zip(codecs, IN_MP4, strict=True))
    return ".mp4" if usual else ".mkv"
