"""Run folder: its layout, atomic writes, content hashes and provenance."""

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import secrets
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from common.errors import UserError, damaged, shorten

OWN_FOLDERS = (
    "common",
    "perception",
    "omniavatar",
    "miniature",
    "audioavatar",
    "curation",
    "latents",
    "training",
    "eval",
    "pipelines",
)

# Libraries in C++ and Rust lose the errno on the way and keep the text; torch.save to a path loses both.
_SAYINGS_OF_A_FULL_DISK = (
    "No space left on device",
    "PytorchStreamWriter failed",
    ". unexpected pos ",
    "basic_ios::clear: iostream error",
)


FORMAT_FILE = "format.json"
"""Beside what is stored in a format with versions; absent in folders written before versions were recorded."""
LARGEST_JSON = 64 * 2**20  # bytes; the index of the largest published weights has some 200 kB


class FormatVersionError(UserError, ValueError):
    """A folder was written in a version of its format that this code does not read."""


class DiskFullError(UserError, RuntimeError):
    """The disk or the quota under a file that was being written is exhausted."""


@dataclass(frozen=True)
class RunFolder:
    """Everything one run reads and writes; folders come into being when first asked for."""

    root: Path

    def _folder(self, name: str) -> Path:
        folder = Path(self.root) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def ledger(self) -> Path:
        """Folder of the ledger (`common.ledger.store`)."""
        return self._folder("ledger")

    @property
    def clips(self) -> Path:
        """Folder of the kept clips, `<clip_id>.mp4`."""
        return self._folder("clips")

    @property
    def clips_parquet(self) -> Path:
        """The clip table (`common.clips`); a file, not created here."""
        return Path(self.root) / "clips.parquet"

    @property
    def shards(self) -> Path:
        """Folder of tar shards and their index (`common.shards.store`)."""
        return self._folder("shards")

    @property
    def checkpoints(self) -> Path:
        """Folder of training checkpoints."""
        return self._folder("checkpoints")

    @property
    def videos(self) -> Path:
        """Folder of generated and reference videos, `<method>/<clip_id>.mp4`."""
        return self._folder("videos")

    @property
    def report(self) -> Path:
        """Folder of `index.html`, `summary.json` and `metrics.parquet`."""
        return self._folder("report")

    @property
    def logs(self) -> Path:
        """Folder of JSON-lines metrics."""
        return self._folder("logs")

    @property
    def cache(self) -> Path:
        """Folder of what can be thrown away and made again."""
        return self._folder("cache")

    @property
    def recipe_yaml(self) -> Path:
        """The resolved recipe; a file, not created here."""
        return Path(self.root) / "recipe.yaml"


class disk_guard:
    """Context that turns whatever a library raises on a full disk into one clear `DiskFullError`."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, DiskFullError):
            return
        recognised = any(text in str(error) for text in _SAYINGS_OF_A_FULL_DISK)
        if recognised or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            path = self.path or getattr(error, "filename", None) or "a file"
            message = (
                f"The disk is full: {path} could not be written whole. Free space there and run the same "
                "command again; finished work is kept."
            )
            raise DiskFullError(message) from error


HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # a name of any characters as eight digits
# .<start of the target's name>.<host>-<pid>-<random>.<kind><suffix>
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{6}\.(?:tmp|unsorted)(?:\.[^.]*)?", re.DOTALL)
_FOREIGN_SECONDS = 86_400.0  # age from which the temporary file of another host counts as a leftover
_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by setting it


def temporary_beside(path: Path, kind: str = "tmp") -> Path:
    """A hidden name beside `path`, of the same suffix, that no other writer uses."""
    # The start of the name only: the whole of a long one and what is added may be longer than a file name can be.
    # Absolute: `take:1/x.parquet` would be an address to some libraries.
    return path.absolute().with_name(
        f".{path.stem[:40]}.{HOST}-{os.getpid()}-{secrets.token_hex(3)}.{kind}{path.suffix}"
    )


def is_leftover(path: Path) -> bool:
    """Whether a file is a temporary file (`temporary_beside`) whose writer was killed."""
    named = _TEMPORARY.fullmatch(path.name)
    if named is None:
        return False
    host, pid = named.groups()
    if host == HOST:
        return not Path(f"/proc/{pid}").exists()
    try:
        return time.time() - path.stat().st_mtime > _FOREIGN_SECONDS
    except FileNotFoundError:  # renamed at this moment
        return False


_writes_before_sweep: dict[Path, int] = {}


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder; with many files in it not before every write, for it lists them."""
    if waiting := _writes_before_sweep.get(folder, 0):
        _writes_before_sweep[folder] = waiting - 1
        return
    names = os.listdir(folder)
    for name in names:
        if name.startswith(".") and is_leftover(folder / name):
            (folder / name).unlink(missing_ok=True)
    _writes_before_sweep[folder] = len(names) // 100


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); on success it is synced and renamed, on error removed.

    Several writers of one file do not mix, the last to end wins; leftovers of killed ones are removed. The file has the
    permissions of the umask, whatever the library that wrote it gave it. Raises DiskFullError when the disk fills up,
    DamagedFileError for a folder at `path`; any other error of the block passes through.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with disk_guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            yield temporary
            follow_umask(temporary)
            sync(temporary)
            try:
                os.replace(temporary, path)
            except IsADirectoryError as error:
                raise damaged(path, "expected a file", "is a folder") from error
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(file: Path) -> None:
    """Give a new file the permissions of the umask: safetensors creates files for their owner alone."""
    if stat.S_ISREG(file.stat().st_mode):
        file.chmod(0o666 & ~_UMASK)


def sync(path: Path) -> None:
    """Have the kernel put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """Reduce dataclasses, paths, tuples and numpy values to what JSON holds; NaN and infinities become None.

    Raises TypeError for a value that has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Without a call for each of many numbers.
        return [item if type(item) is float and math.isfinite(item) else plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form; use numbers, text, lists and dicts.")


def write_json(path: Path | str, obj: Any) -> None:
    """Write `obj` as readable JSON with sorted keys, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(_json_text(obj), "utf-8")


def _json_text(obj: Any) -> str:
    return json.dumps(plain(obj), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_text(path: Path | str) -> str:
    """The text of a file of a run. Raises FileNotFoundError; DamagedFileError for what is not UTF-8, and a folder."""
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, error, "is not UTF-8 text") from error
    except IsADirectoryError as error:
        raise damaged(path, "expected a file", "is a folder") from error


def read_json(path: Path | str, *keys: str) -> Any:
    """Read the object in a JSON file, which has the `keys`. Raises FileNotFoundError, DamagedFileError."""
    if (size := Path(path).stat().st_size) > LARGEST_JSON:
        raise damaged(path, f"it has {size} bytes, expected at most {LARGEST_JSON}")
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, or nested without end
        raise damaged(path, error if text else "it is empty", "is not valid JSON") from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds {shorten(repr(content))}, expected an object")
    if missing := [key for key in keys if key not in content]:
        raise damaged(path, f"it has no entry '{missing[0]}'")
    return content


def write_format_version(folder: Path | str, version: int) -> None:
    """Record in which version of its format a folder is written."""
    write_json(Path(folder) / FORMAT_FILE, {"version": version})


def read_format_version(folder: Path | str, newest: int, remedy: str) -> int:
    """Version of the format of a folder, 1 where none is recorded.

    Raises FormatVersionError unless it is 1 to `newest`, ending with `remedy`: what to do other than updating.
    """
    file = Path(folder) / FORMAT_FILE
    version = read_json(file, "version")["version"] if file.exists() else 1
    if version not in range(1, newest + 1):
        raise FormatVersionError(
            f"{folder} is stored in format version {version!r}, this code reads versions 1 to {newest}; "
            f"update omniavatar-stack, or {remedy}."
        )
    return int(version)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(obj: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `obj` (see `plain`): equal content, equal print."""
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_rows(rows: Iterable[Any]) -> str:
    """The fingerprint of the list of these rows, of which one is held at a time."""
    digest, comma = hashlib.sha256(b"["), b""
    for row in rows:
        digest.update(comma + json.dumps(plain(row), sort_keys=True, separators=(",", ":")).encode())
        comma = b","
    digest.update(b"]")
    return digest.hexdigest()[:16]


def hash_path(path: Path | str) -> str:
    """Content hash (64 hex) of a file, or of a folder: sorted relative names and bytes. Raises FileNotFoundError."""
    path = Path(path)
    return _hash_folder(path, lambda file: True) if path.is_dir() else sha256_file(path)


def _hash_folder(folder: Path, selected: Callable[[Path], bool]) -> str:
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file() and selected(item)):
        name = os.fsencode(file.relative_to(folder).as_posix())  # which need not be UTF-8
        digest.update(name + f"\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def code_hashes() -> dict[str, str]:
    """Hash of the Python source of each of the project's folders, as installed."""
    hashes = {}
    for name in OWN_FOLDERS:
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            hashes[name] = _hash_folder(Path(folder), lambda file: file.suffix == ".py")
    return hashes


def save_provenance(
    run: RunFolder, recipe_yaml: str, models: Mapping[str, Path], hash_of: Callable[[Path], str] = hash_path
) -> None:
    """Write what a number in the report can be traced to: `recipe.yaml` and `versions.json`; unchanged they stay.

    `versions.json` holds Python, the packages installed, the project's own code and each model role, by content hash
    (None for a role without weights). `hash_of` gives the hash of weights, of which there may be 72 GB.
    """
    _write_changed(run.recipe_yaml, recipe_yaml)
    packages = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    hashes = {role: hash_of(Path(path)) if path and Path(path).exists() else None for role, path in models.items()}
    versions = {"python": platform.python_version(), "packages": packages, "code": code_hashes(), "models": hashes}
    _write_changed(Path(run.root) / "versions.json", _json_text(versions))


def _write_changed(path: Path, text: str) -> None:
    """Write a text file that does not hold just that already: its time tells `omniavatar` how old a report is."""
    if not path.exists() or path.read_bytes() != text.encode():
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8")
