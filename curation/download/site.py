"""Video site access: look-up and download through yt-dlp; the only file that imports it.

No ffmpeg program is needed: separate video and audio streams are muxed into one file packet by packet with their
original timestamps, so that nothing is re-encoded and A/V sync is unchanged.
"""

import heapq
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
from common.media.open import MediaError, open_media
from common.runs import disk_guard
from common.untrusted.addresses import AddressError, public_addresses_only, refuse_private
from curation.config import EgressConfig
from curation.download.errors import Failure, FailureClass, classify

logger = logging.getLogger(__name__)
Info = dict[str, Any]

# Separate video and audio, both in one, or whatever exists: the file is checked after the download.
FORMATS = "bv*+ba/b/bv*/ba"
SORT_NAMES = {"h264": "h264", "vp9": "vp9", "av1": "av01"}
SOCKET_SECONDS = 20.0
LONGEST_BACK_OFF = 60.0
IN_MP4 = ({"h264", "hevc", "av1", "vp9"}, {"aac", "opus", "mp3"})
JS_RUNTIMES: dict[str, Any] = {"deno": {}, "node": {}, "bun": {}, "quickjs": {}}
LIVE = ("is_live", "is_upcoming", "post_live")


class _Quiet:
    """Sends the messages of yt-dlp to the debug log; relevant errors are raised as exceptions."""

    debug = info = warning = error = staticmethod(partial(logger.debug, "%s"))


class Site:
    """yt-dlp behind one egress. Its errors become `Failure`; a full disk is a DiskFullError."""

    def __init__(
        self,
        egress: EgressConfig,
        cache: Path,
        max_height: int,
        prefer_codec: str,
        tries: int,
        backoff: float,
        allow_private: bool = False,
    ) -> None:
        self.proxy, self.allow_private = egress.proxy, allow_private
        if egress.cookies and not Path(egress.cookies).expanduser().is_file():
            raise MissingFileError(
                f"The cookies {egress.cookies} of egress {egress.name} do not exist; export them, or unset `cookies`."
            )
        self._ydl = YoutubeDL(_options(egress, cache, max_height, prefer_codec, tries, backoff))

    def look_up(self, url: str) -> Info:
        """Metadata of one video with its selected streams; downloads no media."""
        self._refuse_private(url)
        info: Info = self._guarded(self._ydl.extract_info, url, download=False)
        check_usable(url, info)
        return info

    def fetch(self, info: Info, folder: Path, stem: str) -> Path:
        """Download the selected streams into `folder`, resuming a killed download; returns one complete file.

        The file is named after `stem` and the streams; partial files end in .part.
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
            _remove(pieces)  # the next attempt starts from scratch
            raise
        _remove(pieces)
        return joined

    def _piece(self, info: Info, stream: Info, folder: Path, stem: str) -> Path:
        name = re.sub(r"[^\w.-]", "_", f"{stem}.f{stream['format_id']}.{stream['ext']}")
        self._refuse_private(stream["url"])
        selected = {key: value for key, value in info.items() if key != "requested_formats"} | stream
        whole, _ = self._guarded(self._ydl.dl, str(folder / name), selected)
        if not whole:
            raise Failure(FailureClass.NETWORK, f"the download of {selected['url']} did not finish")
        return folder / name

    def _refuse_private(self, url: str) -> None:
        try:
            if not self.allow_private:
                refuse_private(url)
        except AddressError as error:
            raise Failure(FailureClass.PRIVATE_ADDRESS, str(error)) from error

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        # yt-dlp hands what it cannot fetch itself to ffmpeg, which would follow any address.
        public = public_addresses_only([self.proxy] if self.proxy else (), programs=tuple(JS_RUNTIMES))
        refused: list[AddressError] = []
        try:
            with disk_guard(), nullcontext() if self.allow_private else public as guard:
                refused = guard.refused if guard else refused
                return call(*arguments, **options)
        except (YoutubeDLError, *network_exceptions, TimeoutError, ConnectionError) as error:
            if refused:
                raise Failure(FailureClass.PRIVATE_ADDRESS, str(refused[0])) from error
            message = " ".join(str(error).removeprefix("ERROR: ").split())
            kind = classify(message)
            # Bare network exceptions carry no message to classify.
            bare = kind is FailureClass.UNKNOWN and not isinstance(error, DownloadError)
            raise Failure(FailureClass.NETWORK if bare else kind, message) from error


def _options(
    egress: EgressConfig, cache: Path, max_height: int, prefer_codec: str, tries: int, backoff: float
) -> dict[str, Any]:
    growing = partial(_back_off, backoff)
    return {
        "quiet": True, "noprogress": True, "logger": _Quiet(), "color": "never", "cachedir": str(cache),
        "format": FORMATS, "format_sort": [f"res:{max_height}", f"vcodec:{SORT_NAMES[prefer_codec]}", "acodec:aac"],
        "noplaylist": True, "fixup": "never", "updatetime": False, "skip_unavailable_fragments": False,
        "proxy": egress.proxy or None, "source_address": egress.source_address or None,
        "cookiefile": str(Path(egress.cookies).expanduser()) if egress.cookies else None,
        "ratelimit": egress.max_bytes_per_second or None, "throttledratelimit": egress.min_bytes_per_second or None,
        "sleep_interval_requests": egress.request_pause_seconds, "socket_timeout": SOCKET_SECONDS,
        "retries": tries - 1, "fragment_retries": tries - 1, "extractor_retries": tries - 1,
        "retry_sleep_functions": {"http": growing, "fragment": growing, "extractor": growing},
        # YouTube's signatures need a JavaScript runtime; any of these will do.
        "js_runtimes": JS_RUNTIMES, "enable_file_urls": False,
    }  # fmt: skip


def _back_off(seconds: float, n: int) -> float:
    return min(LONGEST_BACK_OFF, seconds * 2.0**n)


def _remove(pieces: Sequence[Path]) -> None:
    for piece in pieces:
        piece.unlink()


def check_usable(url: str, info: Info | None) -> None:
    """Raises Failure unless the address is a single, finished video that is not known to lack audio."""
    if not info or "entries" in info:
        raise Failure(FailureClass.NO_MEDIA, f"{url} is a list of videos; expected the address of one.")
    if info.get("live_status") in LIVE:
        raise Failure(FailureClass.NOT_READY, f"{url} is a live broadcast that has not become a video yet.")
    if all(stream.get("acodec") == "none" for stream in streams(info)):
        raise Failure(FailureClass.NO_MEDIA, f"{url} has no audio; expected a talking person.", "no_audio")


def streams(info: Info) -> list[Info]:
    """The selected streams: one with video and audio, or video and then audio."""
    return info.get("requested_formats") or [info]


def describe(info: Info) -> dict[str, Any]:
    """Metadata to record: address, streams, announced size and length (None where the site does not say)."""
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


def join_streams(video: Path, audio: Path, target: Path) -> None:
    """Mux a video and an audio stream into one file, packets and timestamps unchanged."""
    try:
        with open_media(video) as first, open_media(audio) as second, av.open(str(target), "w") as joined:
            sources: list[tuple[InputContainer, Stream]] = [(first, first.streams.video[0])]
            sources.append((second, second.streams.audio[0]))
            copies = [joined.add_stream_from_template(stream) for _, stream in sources]
            flows = [_packets(*source, copy) for source, copy in zip(sources, copies, strict=True)]
            for _, _, packet in heapq.merge(*flows, key=lambda item: item[:2]):
                joined.mux(packet)
    except (MediaError, FileNotFoundError, av.FFmpegError, IndexError) as error:
        raise Failure(FailureClass.POST_CHECK, f"{video.name} and {audio.name} cannot be joined ({error})") from error


def _packets(container: InputContainer, stream: Stream, copy: Stream) -> Iterator[tuple[Fraction, int, Packet]]:
    for packet in container.demux(stream):
        if packet.dts is not None:  # the last one is empty
            time = packet.dts * packet.time_base
            packet.stream = copy
            yield time, copy.index, packet


def _suffix_of_join(video: Path, audio: Path) -> str:
    try:
        with open_media(video) as first, open_media(audio) as second:
            codecs = [source.codec_context.codec for source in (first.streams.video[0], second.streams.audio[0])]
    except (MediaError, FileNotFoundError, IndexError) as error:
        raise Failure(FailureClass.POST_CHECK, f"{video.name} or {audio.name} cannot be read ({error})") from error
    usual = all(codec.canonical_name in supported for codec, supported in zip(codecs, IN_MP4, strict=True))
    return ".mp4" if usual else ".mkv"
