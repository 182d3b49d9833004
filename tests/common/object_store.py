"""A small S3 server on localhost: as much of the protocol as pyarrow's client speaks, with objects in memory."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "Sat, 03 Jan 2026 10:00:00 GMT"


class ObjectStore(ThreadingHTTPServer):
    """Objects by "bucket/key", uploads that have begun by id, and the GET requests as (key, range) seen so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.gets: list[tuple[str, str]] = []
        self.numbers = count()  # of uploads: several go on at once

    def url(self, path: str) -> str:
        """The address of "bucket/key" on this server."""
        port = self.server_address[1]
        return f"s3://name:secret@{path}?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running server."""
    server = ObjectStore()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        options = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).strip("/"), options

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        size = self.headers.get("Content-Length")
        if size and "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return self.rfile.read(int(size))
        pieces = []
        if self.headers.get("Transfer-Encoding") == "chunked" and not size:
            wire = b"".join(iter(self._http_chunk, b""))
        else:
            wire = self.rfile.read(int(size or 0))
        while wire:  # of the signed kind: size[;signature], bytes, then trailers after an empty one
            head, _, rest = wire.partition(b"\r\n")
            length = int(head.partition(b";")[0], 16)
            if not length:
                break
            pieces.append(rest[:length])
            wire = rest[length + 2 :]
        return b"".join(pieces)

    def _http_chunk(self) -> bytes:
        length = int(self.rfile.readline().partition(b";")[0], 16)
        content = self.rfile.read(length)
        self.rfile.readline()
        return content

    def do_HEAD(self) -> None:
        path, _ = self._asked()
        content = self.server.objects.get(path)
        if content is not None:
            self._answer(200, Content_Length=str(len(content)), Last_Modified=DATE, ETag='"tag"')
        else:
            bucket = "/" not in path and any(key.startswith(f"{path}/") for key in self.server.objects)
            self._answer(200 if bucket else 404)

    def do_GET(self) -> None:
        path, options = self._asked()
        if "list-type" in options:
            return self._list(path, options)
        content = self.server.objects.get(path)
        if content is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>")
        span = self.headers.get("Range", "")
        self.server.gets.append((path, span))
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", span):
            first, last = int(found[1]), min(int(found[2]), len(content) - 1)
            place = {"Content_Range": f"bytes {first}-{last}/{len(content)}"}
            return self._answer(206, content[first : last + 1], Last_Modified=DATE, ETag='"tag"', **place)
        self._answer(200, content, Last_Modified=DATE, ETag='"tag"')

    def _list(self, bucket: str, options: dict[str, str]) -> None:
        start = f"{bucket}/{options.get('prefix', '')}"
        keys = sorted(key for key in self.server.objects if key.startswith(start))
        items = "".join(
            f"<Contents><Key>{escape(key.removeprefix(bucket + '/'))}</Key><Size>{len(self.server.objects[key])}</Size>"
            f"<LastModified>2026-01-03T10:00:00.000Z</LastModified><ETag>tag</ETag></Contents>"
            for key in keys[: int(options.get("max-keys", 1000))]
        )
        count = f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult><Name>{bucket}</Name>{count}{items}</ListBucketResult>"
        self._answer(200, body.encode(), Content_Type="application/xml")

    def do_PUT(self) -> None:
        path, options = self._asked()
        body = self._body()
        if "uploadId" in options:
            self.server.uploads[options["uploadId"]][int(options["partNumber"])] = body
        elif "/" in path:
            self.server.objects[path] = body
        self._answer(200, ETag='"tag"')

    def do_POST(self) -> None:
        path, options = self._asked()
        self._body()
        if "uploads" in options:
            name = f"upload{next(self.server.numbers)}"
            self.server.uploads[name] = {}
            words = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
        else:  # only now is there an object
            parts = self.server.uploads.pop(options["uploadId"])
            self.server.objects[path] = b"".join(parts[number] for number in sorted(parts))
            words = "<CompleteMultipartUploadResult><ETag>tag</ETag></CompleteMultipartUploadResult>"
        self._answer(200, words.encode(), Content_Type="application/xml")

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self.server.objects.pop(path, None)
        self._answer(204)
