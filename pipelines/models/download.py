"""Resumable download of one file over HTTP, verified by size and SHA-256."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from common.errors import UserError
from common.runs import disk_guard, sha256_file, sync
from common.untrusted.addresses import AddressError, public_addresses_only, refuse_private

logger = logging.getLogger(__name__)

STALL_SECONDS = 30.0
LONGEST_WAIT = 600.0  # seconds; a longer Retry-After ends the download
SHOWN = 120  # characters of a foreign address in a message
TRANSIENT = (408, 429, 500, 502, 503, 504)


class DownloadError(UserError, OSError):
    """A file cannot be fetched, or is not the expected one."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch. None and "" stand for unknown; `sha256_starts` is the digest or its first digits.

    `most` bounds the size where `bytes` is unknown.
    """

    url: str
    bytes: int | None = None
    sha256_starts: str = ""
    most: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RetryPolicy:
    """`attempts` in a row without a new byte end a download; back-off is `pause` * 2**(n-1) seconds after the n-th."""

    attempts: int = 6
    pause: float = 1.0


DEFAULT_RETRIES = RetryPolicy()


def download(
    remote: RemoteFile,
    target: Path,
    on_bytes: Callable[[int], None] = lambda count: None,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> str:
    """Fetch to `target` through `target`.part, from which the next call resumes. Returns the SHA-256.

    `on_bytes` gets the number of new bytes as they arrive, first those of an earlier call. One process at a time may
    write to a target. A redirect may lead to public addresses and to the server that was named, never from https to
    http. Raises DownloadError, DiskFullError.
    """
    part = _PartialFile(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    idle = 0
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [partial(_check_redirect, httpx2.URL(remote.url))]}
    client = httpx2.Client(follow_redirects=True, timeout=STALL_SECONDS, event_hooks=hooks)
    with client, disk_guard(target), public_addresses_only([remote.url]):
        while True:
            before = part.size
            retry = _attempt(client, remote, part, on_bytes)
            if retry is None:
                return _accept(remote, part, target)
            idle = 0 if part.size > before else idle + 1
            if idle >= retries.attempts:
                raise DownloadError(
                    f"{remote.url} cannot be fetched now: {idle} times in a row without a new byte, {retry.reason}. "
                    f"{part.size} bytes are kept; run the same command later to resume."
                )
            logger.info("%s at %d bytes: %s", remote.url, part.size, retry.reason)
            time.sleep(max(retry.wait, retries.pause * 2 ** (idle - 1) if idle else 0.0))


@dataclass(frozen=True)
class _Retry:
    """Request again after at least `wait` seconds."""

    reason: str
    wait: float = 0.0


class _PartialFile:
    """The bytes fetched so far, and the validator (ETag or date) of the remote file that they belong to."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self._validator = target.with_name(target.name + ".part.etag")
        self.reported = 0

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        return self._validator.read_text("utf-8") if self._validator.exists() else ""

    def begin(self, validator: str) -> None:
        """Start over with an empty file."""
        self._validator.write_text(validator, "utf-8")
        self.path.write_bytes(b"")

    def report(self, on_bytes: Callable[[int], None]) -> None:
        """Report bytes not reported yet; discarded bytes count negative."""
        on_bytes(self.size - self.reported)
        self.reported = self.size

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._validator.unlink(missing_ok=True)


def _attempt(
    client: httpx2.Client, remote: RemoteFile, part: _PartialFile, on_bytes: Callable[[int], None]
) -> _Retry | None:
    """One request; None when the file is complete."""
    if remote.bytes is not None and part.size == remote.bytes:
        return None
    # Without a validator only the digest shows whether two parts belong to one file.
    if part.size and not (part.validator or remote.sha256_starts):
        part.drop()
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    part.report(on_bytes)
    try:
        with client.stream("GET", remote.url, headers=headers) as response:
            if response.status_code in (200, 206):
                return _receive(remote, response, part, on_bytes)
            return _refused(remote, response, part)
    except AddressError as error:
        raise DownloadError(f"{remote.url} cannot be fetched, its server redirects elsewhere. {error}") from error
    except httpx2.TransportError as error:
        return _Retry(f"{type(error).__name__} {error}".strip())
    except httpx2.HTTPError as error:  # a redirect loop, say
        raise DownloadError(f"{remote.url} cannot be fetched ({error}).") from error


def _check_redirect(named: httpx2.URL, response: httpx2.Response) -> None:
    """Raises AddressError before a redirect is followed to a private address, another scheme, or from https to http."""
    if not response.has_redirect_location:
        return
    location = response.headers["Location"]
    try:
        target = response.request.url.join(location)
    except httpx2.InvalidURL as error:
        raise AddressError(f"{location[:SHOWN]!r} is no address ({error}).") from error
    if response.request.url.scheme == "https" and target.scheme == "http":
        raise AddressError(f"{str(target)[:SHOWN]!r} is not encrypted any more; expected https://.")
    if target.scheme not in ("http", "https"):
        raise AddressError(f"{str(target)[:SHOWN]!r} is no address of the web; expected https://.")
    if (target.host, target.port) != (named.host, named.port):
        refuse_private(str(target))


def _refused(remote: RemoteFile, response: httpx2.Response, part: _PartialFile) -> _Retry | None:
    """How to handle a response without content; None when the file is complete. Raises DownloadError for permanent
    errors."""
    status = response.status_code
    if status == 416:  # no bytes after the part: it is complete, or belongs to another file
        if response.headers.get("Content-Range") == f"bytes */{part.size}":
            return None
        part.drop()
        return _Retry("HTTP 416")
    if status not in TRANSIENT:
        reason = {401: "requires authentication", 403: "forbids it", 404: "has no such file", 410: "has removed it"}
        raise DownloadError(
            f"{remote.url} cannot be fetched: the server {reason.get(status, 'refuses')} (HTTP {status}). See whether "
            "the publisher has moved it or requires a login, then set its path in the recipe."
        )
    wait = _retry_after(response.headers.get("Retry-After", ""))
    if wait > LONGEST_WAIT:
        raise DownloadError(f"{remote.url} is rate limited for {wait:.0f} s (HTTP {status}); resume after that.")
    return _Retry(f"HTTP {status}", wait)


def _retry_after(value: str) -> float:
    """Seconds in a Retry-After header, which holds seconds or a date; 0 for anything else."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _receive(
    remote: RemoteFile, response: httpx2.Response, part: _PartialFile, on_bytes: Callable[[int], None]
) -> _Retry | None:
    """Append the content; None when the file is complete."""
    start = _start(response)
    if start not in (0, part.size):
        raise DownloadError(f"{remote.url} answers from byte {start} instead of {part.size}; fetch it by hand.")
    if start == 0:
        part.begin(_strong_validator(response))
    length = response.headers.get("Content-Length")
    total = remote.bytes if length is None else start + int(length)
    if remote.bytes is not None and total != remote.bytes:
        part.drop()
        raise DownloadError(
            f"{remote.url} has {total} bytes, expected {remote.bytes}: it is another file; nothing of it was kept."
        )
    most = remote.most if remote.bytes is None else remote.bytes
    with open(part.path, "ab") as file:
        for chunk in response.iter_raw():
            if most is not None and part.size + len(chunk) > most:
                part.drop()
                raise DownloadError(f"{remote.url} sends more than {most} bytes: it is another file; nothing is kept.")
            file.write(chunk)
            file.flush()
            part.report(on_bytes)
    return None if total in (None, part.size) else _Retry("it ended early")


def _start(response: httpx2.Response) -> int:
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(content_range[1]) if response.status_code == 206 and content_range else 0


def _strong_validator(response: httpx2.Response) -> str:
    """A validator for If-Range: an ETag that is not weak, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _accept(remote: RemoteFile, part: _PartialFile, target: Path) -> str:
    digest = sha256_file(part.path)
    if not digest.startswith(remote.sha256_starts):
        part.drop()
        raise DownloadError(
            f"{remote.url} has the SHA-256 {digest}, expected {remote.sha256_starts}...: it was damaged in transfer "
            "or is another file; nothing of it was kept. Fetch it again, or ask the publisher."
        )
    sync(part.path)
    part.path.replace(target)
    part.drop()
    return digest
