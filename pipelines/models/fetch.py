"""Fetching of published weights by name into a folder, after a licence check; every file is verified and locked.

Writes DIR/<entry>/<files of the entry> and DIR/weights.lock.json; an interrupted fetch resumes. The hub's own
downloader restarts a file after a kill, and files have tens of gigabytes, so only its listing is used and files are
fetched by `download`.
"""

import fcntl
import math
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from common.errors import InputError, UserError
from common.progress import ProgressBar, progress
from common.runs import atomic_write, sha256_file
from common.untrusted.addresses import AddressError, public_addresses_only
from common.untrusted.weight_files import CheckpointError, check_archive
from pipelines.models.download import DEFAULT_RETRIES, DownloadError, RemoteFile, RetryPolicy, download
from pipelines.models.lock import MEGABYTE, LockedEntry, LockedFile, read_lock, write_lock
from pipelines.models.published import HubSource, Published

ROOM = 4  # a file whose size nobody states may have so many times the bytes that its entry says
LONGEST_NAME = 200  # bytes; what is being written has a suffix, and file systems take 255


class LicenceError(UserError, ValueError):
    """Weights with a restrictive licence were requested without --accept."""


@dataclass(frozen=True)
class Listing:
    """Files of a source at a revision: path -> remote file, and the members to unpack from archives."""

    revision: str
    files: Mapping[str, RemoteFile]
    unpack: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def fetch(
    entries: Mapping[str, Published],
    folder: Path,
    accept: bool = False,
    endpoint: str | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> dict[str, dict[str, Path]]:
    """Fetch entries into `folder`. Returns entry -> role -> path, as in a recipe's `models:`.

    The revision in the lock file is fetched again, never a newer one. `endpoint` is another hub than the public one.
    Raises LicenceError, ValueError for entries that are only available by hand, DownloadError, DiskFullError.
    """
    _refuse_unfit(entries, accept, folder)
    with _only_writer(folder):
        for name, what in entries.items():
            _fetch_entry(name, what, folder, endpoint, retries)
    return {name: {role: folder / name / path for role, path in what.roles.items()} for name, what in entries.items()}


def _refuse_unfit(entries: Mapping[str, Published], accept: bool, folder: Path) -> None:
    for name, what in entries.items():
        if what.by_hand:
            place = folder / name / next(iter(what.roles.values()))
            raise InputError(
                f"{name} cannot be fetched by a command: get it from {what.by_hand}, and put it at {place}."
            )
        if what.consent and not accept:
            raise LicenceError(f"{name} {what.consent}. Give --accept if your use of it is allowed.")


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".fetching", "w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"Another fetch is writing to {folder}; wait for it or choose another --to.") from None
        yield


def _fetch_entry(name: str, what: Published, folder: Path, endpoint: str | None, retries: RetryPolicy) -> None:
    locked = read_lock(folder).get(name, LockedEntry(what.licence))
    listing = _list_hub(what.hub, locked.revision, endpoint) if what.hub else _list_urls(what)
    if listing.revision != locked.revision:
        locked = LockedEntry(what.licence, listing.revision)
        _remember(folder, name, locked)
    for path, remote in listing.files.items():
        members = listing.unpack.get(path, ())
        missing = [file for file in members or (path,) if not _present(folder / name, file, locked)]
        if not missing:
            continue
        _with_bar(remote, folder / name / path, f"{name}/{path}", retries)
        for file in _unpack(folder / name / path, members) if members else (path,):
            there = folder / name / file
            locked.files[file] = LockedFile(there.stat().st_size, sha256_file(there), remote.url)
        _remember(folder, name, locked)


def _remember(folder: Path, name: str, locked: LockedEntry) -> None:
    write_lock(folder, read_lock(folder) | {name: locked})


def _present(folder: Path, file: str, locked: LockedEntry) -> bool:
    entry = locked.files.get(file)
    return entry is not None and (folder / file).is_file() and (folder / file).stat().st_size == entry.bytes


def _with_bar(remote: RemoteFile, target: Path, label: str, retries: RetryPolicy) -> None:
    size = remote.bytes or 0
    bar: ProgressBar[int] = progress(max(1, math.ceil(size / MEGABYTE)), f"{label}, MB")
    with bar:
        fetched = 0

        def on_bytes(count: int) -> None:
            nonlocal fetched
            fetched += count
            bar.update(math.ceil(fetched / MEGABYTE) - bar.count)

        download(remote, target, on_bytes, retries)


def _list_urls(what: Published) -> Listing:
    most = ROOM * what.bytes + 64 * MEGABYTE
    files = {each.path: RemoteFile(each.url, sha256_starts=each.sha256_starts, most=most) for each in what.urls}
    return Listing("", files, {each.path: each.unpack for each in what.urls if each.unpack})


def _list_hub(source: HubSource, locked_revision: str, endpoint: str | None) -> Listing:
    """Files of a repository at the locked revision or, without one, at the entry's. Raises DownloadError."""
    revision = locked_revision or source.revision
    hub = HfApi(endpoint=endpoint)
    try:
        with public_addresses_only([hub.endpoint]):
            info = hub.model_info(source.repo, revision=revision, files_metadata=True)
    except AddressError as error:
        raise DownloadError(f"{source.repo} cannot be listed, {hub.endpoint} redirects elsewhere. {error}") from error
    except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise DownloadError(f"{source.repo} at {revision} {_hub_reason(error)}.") from error
    found = {file.rfilename: file for file in info.siblings or ()}
    headers = build_hf_headers()
    files: dict[str, RemoteFile] = {}
    for pattern in source.files:
        matches = sorted(path for path in found if fnmatch(path, pattern))
        if not matches:
            raise DownloadError(f"{source.repo} at {revision} has no file {pattern}; its files are {sorted(found)}.")
        for path in matches:
            _refuse_outside(path, source.repo, files)
            url = hf_hub_url(source.repo, path, revision=info.sha, endpoint=endpoint)
            large = found[path].lfs
            files[path] = RemoteFile(url, found[path].size, large.sha256 if large else "", headers)
    return Listing(info.sha or "", files)


def _refuse_outside(path: str, repo: str, others: Iterable[str]) -> None:
    """Raises DownloadError for a name that would not become a file of its own below the entry's folder."""
    parts = path.split("/")
    odd = any(not part or part in (".", "..") or len(part.encode()) > LONGEST_NAME for part in parts)
    if odd or "\\" in path or ":" in path or not path.isprintable():
        raise DownloadError(f"{repo} lists the file {path[:80]!r}, which is no plain path; nothing of it is fetched.")
    if twin := next((other for other in others if other != path and other.casefold() == path.casefold()), None):
        raise DownloadError(f"{repo} lists {twin} and {path}, which are one file on some disks; nothing is fetched.")


def _hub_reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "cannot be listed: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it to fetch weights"
    if isinstance(error, GatedRepoError):
        return "requires accepting its terms; accept them on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "is not on the hub, or is private; see its page, and log in with `hf auth login` if you have access"
    if isinstance(error, RevisionNotFoundError):
        return "no longer has this revision; remove the entry from weights.lock.json to fetch the current one"
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"cannot be listed now ({reason}); run the same command later"


def _is_odd(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder, a link or a device instead of a file."""
    mode = entry.external_attr >> 16
    return entry.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG))


def _unpack(archive: Path, members: Sequence[str]) -> Sequence[str]:
    """Extract `members` of a zip file, from any folder in it, and delete the file. Raises DownloadError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            check_archive(archive, opened)
            inside = {Path(entry.filename).name: entry for entry in opened.infolist() if not _is_odd(entry)}
            absent = [member for member in members if member not in inside]
            if absent:
                raise DownloadError(f"{archive} lacks {', '.join(absent)}; it contains {', '.join(sorted(inside))}.")
            for member in members:
                with (
                    atomic_write(archive.with_name(member)) as temporary,
                    opened.open(inside[member]) as packed,
                    open(temporary, "wb") as file,
                ):
                    shutil.copyfileobj(packed, file, MEGABYTE)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, CheckpointError) as error:
        archive.unlink()
        reason = "; ".join(error.problems) if isinstance(error, CheckpointError) else error
        raise DownloadError(
            f"{archive} was not a zip file of weights ({reason}) and is removed; fetch it again."
        ) from error
    archive.unlink()
    return members
