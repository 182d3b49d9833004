"""Fetching published weights into a folder: asked for by name, licence first, every file checked and locked.

DIR/<entry>/<files of the entry>, and DIR/weights.lock.json. Run again after any interruption it goes on where it was.
The hub's own downloader starts a file anew after a kill; files there have tens of gigabytes, so its listing is used
and the files are fetched by `download`.
"""

import fcntl
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers

from common.errors import InputError, UserError
from common.progress import ProgressBar, progress
from common.runs import atomic_write, sha256_file
from pipelines.models.download import PATIENT, DownloadError, Patience, Wanted, download
from pipelines.models.lock import MEGABYTE, LockedEntry, LockedFile, read_lock, write_lock
from pipelines.models.published import HubSource, Published, UrlSource


class LicenceError(UserError, ValueError):
    """Weights that forbid something were asked for without accepting that."""


@dataclass(frozen=True)
class Listing:
    """What a source offers at a revision: path -> what to fetch, and members to unpack of the archives among them."""

    revision: str
    files: Mapping[str, Wanted]
    unpack: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def fetch(
    entries: Mapping[str, Published],
    folder: Path,
    accept: bool = False,
    endpoint: str | None = None,
    patience: Patience = PATIENT,
) -> dict[str, dict[str, Path]]:
    """Fetch entries into `folder`. Returns entry -> role -> path, as a recipe's `models:` takes it.

    A revision that the lock file names is fetched again, never a newer one. `endpoint` is another hub than the public
    one. Raises LicenceError, ValueError for what is not to be had by a command, DownloadError, DiskFullError.
    """
    _refuse_unfit(entries, accept, folder)
    with _only_writer(folder):
        for name, what in entries.items():
            _fetch_entry(name, what, folder, endpoint, patience)
    return {name: {role: folder / name / path for role, path in what.roles.items()} for name, what in entries.items()}


def _refuse_unfit(entries: Mapping[str, Published], accept: bool, folder: Path) -> None:
    for name, what in entries.items():
        if what.by_hand:
            place = folder / name / next(iter(what.roles.values()))
            raise InputError(f"{name} is not fetched by a command: get it from {what.by_hand}, and put it at {place}.")
        if what.consent and not accept:
            raise LicenceError(f"{name} {what.consent}. Give --accept if your use of it is allowed.")


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".fetching", "w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"Another fetch writes into {folder}; wait for it or choose another --to.") from None
        yield


def _fetch_entry(name: str, what: Published, folder: Path, endpoint: str | None, patience: Patience) -> None:
    locked = read_lock(folder).get(name, LockedEntry(what.licence))
    listing = _list_hub(what.hub, locked.revision, endpoint) if what.hub else _list_urls(what.urls)
    if listing.revision != locked.revision:
        locked = LockedEntry(what.licence, listing.revision)
        _remember(folder, name, locked)
    for path, wanted in listing.files.items():
        members = listing.unpack.get(path, ())
        missing = [file for file in members or (path,) if not _present(folder / name, file, locked)]
        if not missing:
            continue
        _with_bar(wanted, folder / name / path, f"{name}/{path}", patience)
        for file in _unpack(folder / name / path, members) if members else (path,):
            there = folder / name / file
            locked.files[file] = LockedFile(there.stat().st_size, sha256_file(there), wanted.url)
        _remember(folder, name, locked)


def _remember(folder: Path, name: str, locked: LockedEntry) -> None:
    write_lock(folder, read_lock(folder) | {name: locked})


def _present(folder: Path, file: str, locked: LockedEntry) -> bool:
    known = locked.files.get(file)
    return known is not None and (folder / file).is_file() and (folder / file).stat().st_size == known.bytes


def _with_bar(wanted: Wanted, target: Path, label: str, patience: Patience) -> None:
    size = wanted.bytes or 0
    bar: ProgressBar[int] = progress(max(1, math.ceil(size / MEGABYTE)), f"{label}, MB")
    with bar:
        come = 0

        def moved(count: int) -> None:
            nonlocal come
            come += count
            bar.update(math.ceil(come / MEGABYTE) - bar.count)

        download(wanted, target, moved, patience)


def _list_urls(urls: Sequence[UrlSource]) -> Listing:
    files = {source.path: Wanted(source.url, sha256_starts=source.sha256_starts) for source in urls}
    return Listing("", files, {source.path: source.unpack for source in urls if source.unpack})


def _list_hub(source: HubSource, locked_revision: str, endpoint: str | None) -> Listing:
    """Files of a repository at the locked revision or, the first time, at the entry's. Raises DownloadError."""
    revision = locked_revision or source.revision
    try:
        info = HfApi(endpoint=endpoint).model_info(source.repo, revision=revision, files_metadata=True)
    except (HfHubHTTPError, httpx2.TransportError) as error:
        raise DownloadError(f"{source.repo} at {revision} {_hub_reason(error)}.") from error
    found = {file.rfilename: file for file in info.siblings or ()}
    headers = build_hf_headers()
    files = {}
    for pattern in source.files:
        matches = sorted(path for path in found if fnmatch(path, pattern))
        if not matches:
            raise DownloadError(f"{source.repo} at {revision} has no file {pattern}; its files are {sorted(found)}.")
        for path in matches:
            url = hf_hub_url(source.repo, path, revision=info.sha, endpoint=endpoint)
            large = found[path].lfs
            files[path] = Wanted(url, found[path].size, large.sha256 if large else "", headers)
    return Listing(info.sha or "", files)


def _hub_reason(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "is given only to who has agreed to its terms; agree on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "is not on the hub, or not for everyone; see its page, log in with `hf auth login` if need be"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision any more; remove the entry from weights.lock.json to take the present one"
    return f"cannot be listed now ({str(error).splitlines()[0]}); run the same command later"


def _unpack(archive: Path, members: Sequence[str]) -> Sequence[str]:
    """Take `members` out of a zip file, whatever folder they lie in, and remove it. Raises DownloadError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            inside = {Path(name).name: name for name in opened.namelist()}
            absent = [member for member in members if member not in inside]
            if absent:
                raise DownloadError(f"{archive} lacks {', '.join(absent)}; it holds {', '.join(sorted(inside))}.")
            for member in members:
                with atomic_write(archive.with_name(member)) as temporary:
                    temporary.write_bytes(opened.read(inside[member]))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"{archive} was no zip file ({error}) and is removed; fetch it again.") from error
    archive.unlink()
    return members
