"""A web server on this machine that serves given bytes and misbehaves when told to."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Web:
    """`files`: path -> bytes. `mishaps[path]`: one per request, taken from the left; then all is well.

    A mishap is a status ("404", "429 5" with Retry-After, "403 GatedRepo" with the hub's word for it), "cut N" (closed
    after N bytes), "reset N" (torn down after N bytes), "short N" (N bytes are announced and sent), "hold N" (N bytes,
    then nothing) or "whole" (Range is ignored).
    """

    def __init__(self):
        self.files, self.mishaps, self.requests = {}, defaultdict(deque), []
        self.let_go = threading.Event()
        handler = type("Handler", (_Handler,), {"web": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path):
        return f"{self.address}/{path}"

    def ranges(self, path):
        """The Range headers of the requests for a path, in order; None where there was none."""
        return [headers.get("Range") for asked, headers in self.requests if asked == path]

    def publish(self, repo, files):
        """Serve a hub repository: its listing, and each file by way of a redirect as the hub does."""
        siblings = []
        for path, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            large = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": path, "size": len(content), "blobId": "b" * 40})
            if not path.endswith(".json"):
                siblings[-1]["lfs"] = large
            self.files[f"{repo}/resolve/{COMMIT}/{path}"] = f"cdn/{digest}"
            self.files[f"cdn/{digest}"] = content
        listing = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        for revision in ("main", COMMIT):
            self.files[f"api/models/{repo}/revision/{revision}?blobs=true"] = listing

    def close(self):
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self):
        path = self.path.lstrip("/")
        self.web.requests.append((path, dict(self.headers)))
        mishap = self.web.mishaps[path].popleft() if self.web.mishaps[path] else ""
        kind, _, number = mishap.partition(" ")
        content = self.web.files.get(path)
        if kind.isdigit() or content is None:
            return self._status(int(kind) if kind.isdigit() else 404, number or self._unknown(path))
        if isinstance(content, str):
            return self._status(302, location=content if ":" in content else f"/{content}")
        self._content(content, kind, int(number or 0))

    def _unknown(self, path):
        """The word by which the hub says what of a repository it does not have."""
        repo = path.removeprefix("api/models/").partition("/revision")[0]
        known = any(name.startswith(f"api/models/{repo}/") for name in self.web.files)
        return ("RevisionNotFound" if known else "RepoNotFound") if path.startswith("api/") else ""

    def _status(self, status, word="", location=""):
        self.send_response(status)
        named = "X-Error-Code" if word.isalpha() else "Retry-After"
        for name, value in ((named, word), ("Location", location), ("Content-Length", "0")):
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _content(self, content, kind, number):
        tag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
        asked = self.headers.get("Range")
        if asked and kind != "whole" and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = content[start:number] if kind == "short" else content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind not in ("cut", "hold", "reset"):
            return self.wfile.write(body)
        self.wfile.write(body[:number])
        self.wfile.flush()
        if kind == "hold":
            self.web.let_go.wait(60)
        if kind == "reset":
            time.sleep(0.05)  # what was sent arrives before the reset does
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for end in (self.rfile, self.wfile, self.connection):
                end.close()
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web():
    server = Web()
    yield server
    server.close()
