"""One file over HTTP, gone on with after any interruption, and refused unless it is the file that was expected."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from common.errors import UserError
from common.runs import disk_guard, sha256_file, sync

logger = logging.getLogger(__name__)

STALL_SECONDS = 30.0
LONGEST_WAIT = 600.0  # a server that asks for more is not waited for
TRANSIENT = (408, 429, 500, 502, 503, 504)


class DownloadError(UserError, OSError):
    """A file cannot be had, or is not the one that was expected; the message says which and what to do."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. None and "" mean that nothing is known; `sha256_starts` is the whole digest or its beginning."""

    url: str
    bytes: int | None = None
    sha256_starts: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """`tries` in a row without a new byte end a download; after the n-th it waits `pause` * 2**(n-1) seconds."""

    tries: int = 6
    pause: float = 1.0


PATIENT = Patience()


def download(
    wanted: Wanted, target: Path, moved: Callable[[int], None] = lambda count: None, patience: Patience = PATIENT
) -> str:
    """Fetch to `target`, through `target`.part, which the next call goes on with. Returns the SHA-256.

    `moved` hears of bytes as they come, those of an earlier call first. One process at a time may write to a target.
    Raises DownloadError, DiskFullError.
    """
    part = _Part(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    idle = 0
    with httpx2.Client(follow_redirects=True, timeout=STALL_SECONDS) as client, disk_guard(target):
        while True:
            before = part.size
            again = _attempt(client, wanted, part, moved)
            if again is None:
                return _accept(wanted, part, target)
            idle = 0 if part.size > before else idle + 1
            if idle >= patience.tries:
                raise DownloadError(
                    f"{wanted.url} cannot be fetched now: {idle} times in a row without a new byte, {again.why}. "
                    f"{part.size} bytes are kept; run the same command later to go on."
                )
            logger.info("%s at %d bytes: %s", wanted.url, part.size, again.why)
            time.sleep(max(again.wait, patience.pause * 2 ** (idle - 1) if idle else 0.0))


@dataclass(frozen=True)
class _Again:
    """Ask once more, not before `wait` seconds are over."""

    why: str
    wait: float = 0.0


class _Part:
    """The bytes there are so far, and the validator (ETag or date) of the file that they are the beginning of."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self._validator = target.with_name(target.name + ".part.etag")
        self.told = 0

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        return self._validator.read_text("utf-8") if self._validator.exists() else ""

    def begin(self, validator: str) -> None:
        """Forget what there is: another file begins."""
        self._validator.write_text(validator, "utf-8")
        self.path.write_bytes(b"")

    def tell(self, moved: Callable[[int], None]) -> None:
        """Report what was not reported yet; what was thrown away counts back."""
        moved(self.size - self.told)
        self.told = self.size

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._validator.unlink(missing_ok=True)


def _attempt(client: httpx2.Client, wanted: Wanted, part: _Part, moved: Callable[[int], None]) -> _Again | None:
    """One request; None when the file is whole."""
    if wanted.bytes is not None and part.size == wanted.bytes:
        return None
    # Without a validator only the digest can tell whether two parts belong to one file.
    if part.size and not (part.validator or wanted.sha256_starts):
        part.drop()
    headers = {**wanted.headers, "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    part.tell(moved)
    try:
        with client.stream("GET", wanted.url, headers=headers) as response:
            if response.status_code in (200, 206):
                return _receive(wanted, response, part, moved)
            return _refused(wanted, response, part)
    except httpx2.TransportError as error:
        return _Again(f"{type(error).__name__} {error}".strip())
    except httpx2.HTTPError as error:  # a redirect loop, say
        raise DownloadError(f"{wanted.url} cannot be fetched ({error}).") from error


def _refused(wanted: Wanted, response: httpx2.Response, part: _Part) -> _Again | None:
    """What to do about an answer without content. Raises DownloadError when asking again would not help."""
    status = response.status_code
    if status == 416:  # nothing after the part: it is the whole file, or of another one
        if response.headers.get("Content-Range") == f"bytes */{part.size}":
            return None
        part.drop()
        return _Again("HTTP 416")
    if status not in TRANSIENT:
        reason = {401: "asks who you are", 403: "forbids it", 404: "has no such file", 410: "has it no longer"}
        raise DownloadError(
            f"{wanted.url} cannot be fetched: the server {reason.get(status, 'refuses')} (HTTP {status}). See whether "
            "the publisher has moved it or wants a login, then name its path in the recipe."
        )
    wait = _retry_after(response.headers.get("Retry-After", ""))
    if wait > LONGEST_WAIT:
        raise DownloadError(f"{wanted.url} wants to be left alone for {wait:.0f} s (HTTP {status}); go on after that.")
    return _Again(f"HTTP {status}", wait)


def _retry_after(value: str) -> float:
    """Seconds in a Retry-After header, which holds seconds or a date; 0 for anything else."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _receive(wanted: Wanted, response: httpx2.Response, part: _Part, moved: Callable[[int], None]) -> _Again | None:
    """Append what comes; None when the file is whole."""
    start = _start(response)
    if start not in (0, part.size):
        raise DownloadError(f"{wanted.url} answers from byte {start}, asked was {part.size}; fetch it by hand.")
    if start == 0:
        part.begin(_strong_validator(response))
    length = response.headers.get("Content-Length")
    total = wanted.bytes if length is None else start + int(length)
    if wanted.bytes is not None and total != wanted.bytes:
        part.drop()
        raise DownloadError(
            f"{wanted.url} offers {total} bytes, expected {wanted.bytes}: it is another file; nothing of it was kept."
        )
    with open(part.path, "ab") as file:
        for chunk in response.iter_raw():
            file.write(chunk)
            file.flush()
            part.tell(moved)
    return None if total in (None, part.size) else _Again("it ended early")


def _start(response: httpx2.Response) -> int:
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(given[1]) if response.status_code == 206 and given else 0


def _strong_validator(response: httpx2.Response) -> str:
    """What If-Range takes: an ETag that is not weak, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _accept(wanted: Wanted, part: _Part, target: Path) -> str:
    digest = sha256_file(part.path)
    if not digest.startswith(wanted.sha256_starts):
        part.drop()
        raise DownloadError(
            f"{wanted.url} has the SHA-256 {digest}, expected {wanted.sha256_starts}...: it was damaged on the way or "
            "is another file; nothing of it was kept. Fetch it again, or ask the publisher."
        )
    sync(part.path)
    part.path.replace(target)
    part.drop()
    return digest
