"""A small web of videos on this machine that misbehaves as it is told, and remembers what it was asked for."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Trick = Literal["", "cut", "reset", "trickle", "html", "plain"]


@dataclass(frozen=True)
class Answer:
    """One answer to a GET. `status` other than 200 has no body; "cut" and "reset" end the connection after `after`
    bytes, tidily or with a TCP reset; "trickle" sends slowly; "html" sends a page instead; "plain" ignores Range."""

    status: int = 200
    trick: Trick = ""
    after: int = 0


OK = Answer()


@dataclass
class Web:
    """`bodies`: path -> (content type, bytes). `answers`: path -> answers in turn, the last one for ever after.
    `asked`: (path, first byte asked for, bytes to send), one for each GET; `clients` and `cookies`: who came with what.
    Clients whose address is in `refused` get 429. Asked as a proxy, it answers for any host. `latency` seconds pass
    before an answer, which comes at `bytes_per_second` (0: as fast as may be)."""

    address: str = ""
    refused: set[str] = field(default_factory=set)
    clients: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    bodies: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    latency: float = 0.0
    bytes_per_second: int = 0

    def add_video(self, name: str, body: bytes, *answers: Answer, seconds: float | None = None) -> str:
        """A page with a video in it, its length told if given; the answers are those of the media. Returns the page's
        address."""
        shown = f'<video><source src="/media/{name}.mp4" type="video/mp4"></video>'
        if seconds is not None:
            about = {"@context": "https://schema.org", "@type": "VideoObject", "name": name}
            about |= {"duration": f"PT{seconds}S", "contentUrl": f"{self.address}/media/{name}.mp4"}
            shown = f'<script type="application/ld+json">{json.dumps(about)}</script>'
        self.bodies[f"/watch/{name}"] = ("text/html", f"<html><title>{name}</title>{shown}</html>".encode())
        self.bodies[f"/media/{name}.mp4"] = ("video/mp4", body)
        self.answers[f"/media/{name}.mp4"] = list(answers)
        return f"{self.address}/watch/{name}"

    def add_dash(self, name: str, pictures: dict[int, bytes], sound: bytes) -> str:
        """A manifest that offers pictures of several heights and the sound apart; returns its address."""
        streams = {f"{name}-{height}.mp4": body for height, body in pictures.items()} | {f"{name}-sound.m4a": sound}
        self.bodies |= {f"/media/{file}": ("video/mp4", body) for file, body in streams.items()}
        shown = "".join(
            f'<Representation id="{height}" bandwidth="{1000 * height}" width="{height}" height="{height}" '
            f'codecs="avc1.64001f"><BaseURL>/media/{name}-{height}.mp4</BaseURL></Representation>'
            for height in pictures
        )
        manifest = (
            '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period>'
            f'<AdaptationSet mimeType="video/mp4">{shown}</AdaptationSet><AdaptationSet mimeType="audio/mp4">'
            '<Representation id="sound" bandwidth="64000" codecs="mp4a.40.2">'
            f"<BaseURL>/media/{name}-sound.m4a</BaseURL></Representation></AdaptationSet></Period></MPD>"
        )
        self.bodies[f"/{name}.mpd"] = ("application/dash+xml", manifest.encode())
        return f"{self.address}/{name}.mpd"

    def gets(self, path: str) -> list[tuple[int, int]]:
        """First byte asked for and bytes to send, of each GET of a path."""
        return [(start, sent) for asked, start, sent in self.asked if asked == path]

    def next_answer(self, path: str) -> Answer:
        """What a GET of the path gets now."""
        answers = self.answers.get(path) or [OK]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        web, client = self.server.web, self.client_address[0]
        web.clients.append(client)
        web.cookies.append(self.headers.get("Cookie", ""))
        self.path = urlsplit(self.path).path
        answer = Answer(429) if client in web.refused else web.next_answer(self.path)
        kind, body = web.bodies.get(self.path, ("", b""))
        status = answer.status if self.path in web.bodies else 404
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and answer.trick != "plain" else 0
        if answer.trick == "html":
            kind, body = "text/html", b"<html>This is no video.</html>" * 50
        if status == 200 and start >= len(body) > 0:
            status = 416
        if status != 200:
            kind, body, start = "text/plain", b"", 0
        length, body = len(body), body[start:]
        if answer.trick in ("cut", "reset"):
            body = body[: answer.after]
        # Before anything is sent: a test must not be faster than the count.
        web.asked.append((self.path, start, len(body)))
        time.sleep(web.latency)
        self.send_response(206 if start else status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{length - 1}/{length}")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(body, answer.trick)

    def _send(self, body: bytes, trick: Trick) -> None:
        if trick == "trickle":
            for number in range(0, len(body), 100):
                self.wfile.write(body[number : number + 100])
                time.sleep(0.1)
            return
        if rate := self.server.web.bytes_per_second:
            for start in range(0, len(body), step := max(1, rate // 20)):
                self.wfile.write(body[start : start + step])
                time.sleep(len(body[start : start + step]) / rate)
            return
        self.wfile.write(body)
        self.close_connection = trick in ("cut", "reset")
        if trick == "reset":
            time.sleep(0.1)  # let what was sent arrive first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *words: Any) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    web: Web

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a trick or a killed client has closed are what is being tested."""


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    """A web that is up while the context lasts."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.web = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
