"""Checks of the files and folders that a command is asked to write, made before anything is computed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from common.errors import InputError


def check_output_file(path: Path, suffixes: Sequence[str] = (), inputs: Iterable[Path | None] = ()) -> None:
    """Raise InputError unless a file with one of `suffixes` (any, if empty) can be written at `path`, and is none of
    `inputs` by path, by a link or by letter case."""
    if suffixes and path.suffix.lower() not in suffixes:
        ending = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        raise InputError(f"The output {path} {ending}; expected a file name that ends in {' or '.join(suffixes)}.")
    try:
        if path.is_dir():
            raise InputError(f"The output {path} is a folder; expected the name of a file, in it or elsewhere.")
        if path.exists() and not path.is_file():
            raise InputError(f"The output {path} is a device or a pipe; expected the name of an ordinary file.")
        source = next((source for source in inputs if source is not None and same_file(path, source)), None)
        if source is not None:
            name = "an input" if path == source else f"the input {source}"
            raise InputError(f"The output {path} is {name} of this command and would replace it; choose another name.")
        _try_to_write(path.parent, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def run_files(run: Path) -> list[Path]:
    """The tables and settings of a run folder, which no output of a command that reads it may replace."""
    return [path for path in run.iterdir() if path.suffix in (".parquet", ".yaml", ".json")] if run.is_dir() else []


def check_output_folder(path: Path) -> None:
    """Raise InputError unless files can be written into the folder `path`, which need not exist."""
    try:
        _try_to_write(path, path / "file")
    except OSError as error:
        raise _unwritable(path, error) from error


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one existing file: equal, linked, or spelled in other letters where these are equal."""
    return one.exists() and other.exists() and os.path.samefile(one, other)


def ignores_case(folder: Path) -> bool:
    """Whether the nearest folder that exists takes names in other letter case for the same file."""
    folder = _nearest(folder)
    with NamedTemporaryFile(dir=folder, prefix=".case-") as file:
        return (folder / Path(file.name).name.upper()).exists()


def _nearest(folder: Path) -> Path:
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _try_to_write(folder: Path, path: Path) -> None:
    """Write and remove a file with a name as long as that of `path` in the nearest folder that exists."""
    folder = _nearest(folder)
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is not a folder; choose another place.")
    with NamedTemporaryFile(dir=folder, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}"):
        pass


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({error.strerror}); choose another place or name.")
