"""Random weights in the published files, written tensor by tensor, and the marker that tells them from a user's own.

The values are one block of normal numbers read from a place that depends on the tensor's name: the same weights give
the same bytes, nothing is drawn twice, and no more than one tensor is in memory. Norms are 1, all else has a standard
deviation of 0.02, with which the activations of every model stay finite in bfloat16.
"""

import io
import json
import pickle
import re
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import ExistingFileError, InputError
from common.runs import disk_guard, fingerprint, read_json, temporary_beside, write_json
from omniavatar.weights.tensor_files import CheckpointError, read_tensors
from pipelines.models.published import gigabytes
from pipelines.rehearse.shapes import Sizes, Tensors, WeightFile, files_of

MARKER = "random-weights.json"
"""Beside what a rehearsal has written: the files that are its own, with their sizes and tensors."""
PERIOD = 4_194_301  # numbers of the block; a prime, so that the rows of no matrix repeat
DEVIATION = 0.02
_NORM = re.compile(r"(norm\w*\.weight|\.gamma)$")
_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16"}
_STORAGES = {torch.float32: torch.FloatStorage, torch.bfloat16: torch.BFloat16Storage}


@cache
def _block(seed: int, dtype: torch.dtype) -> Tensor:
    normal = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed))
    return (DEVIATION * normal).to(dtype)


class RandomValues:
    """The values of every tensor, by name, shape and type."""

    def __init__(self, seed: int = 0) -> None:
        self._blocks = {dtype: _block(seed, dtype) for dtype in _SAFETENSORS}

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor of this name."""
        if _NORM.search(name):
            return torch.ones(shape, dtype=dtype)
        filled, block = torch.empty(shape, dtype=dtype), self._blocks[dtype]
        rest, start = filled.view(-1), zlib.crc32(name.encode()) % PERIOD
        while len(rest):
            piece = block[start:][: len(rest)]
            rest[: len(piece)] = piece
            rest, start = rest[len(piece) :], 0
        return filled


@dataclass(frozen=True)
class RandomRole:
    """The random weights of one role: its path, and its files in the folder of their entry."""

    role: str
    path: Path
    folder: Path
    files: tuple[WeightFile, ...]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)


def random_role(role: str, sizes: Sizes, folder: Path, inside: str) -> RandomRole:
    """The random weights of `role` at `folder / inside`, not written yet."""
    return RandomRole(role, folder / inside, folder, files_of(role, sizes))


def missing_files(roles: Sequence[RandomRole]) -> tuple[dict[Path, WeightFile], list[str]]:
    """The files of random weights that are not there as they should be, and a sentence for each that was before.

    Raises ExistingFileError for a file that is not ours, or is not any more: it is not overwritten.
    """
    missing, damage = {}, []
    for role in roles:
        marker = read_marker(role.folder)
        for file in role.files:
            path, ours = role.folder / file.path, marker.get(file.path)
            if not path.exists():
                if ours and ours["written"]:
                    damage.append(f"{role.role}: {path} is gone")
            elif ours is None:
                raise ExistingFileError(
                    f"{path} is not of a rehearsal, and nothing is overwritten: move it away, or choose another --to."
                )
            else:
                state = _state(path, file, ours)
                if not state:
                    continue
                damage += [f"{role.role}: {path} {state}"] if ours["written"] else []
            missing[path] = file
    return missing, damage


def _state(path: Path, file: WeightFile, ours: Mapping[str, Any]) -> str:
    """What is wrong with a file of ours, "" for nothing. Raises ExistingFileError for tensors that are not ours."""
    size = path.stat().st_size
    if size < (ours["bytes"] or file.bytes):
        return f"has {size:,} bytes of {ours['bytes'] or file.bytes:,}, it is cut short"
    if not file.tensors:
        return "" if path.read_text("utf-8", "replace") == file.text else "is another than this rehearsal needs"
    try:
        found = _print_of({name: (tuple(value.shape), value.dtype) for name, value in read_tensors(path, "meta")})
    except CheckpointError as error:
        return f"cannot be read ({error.problems[0]})"
    if found == _print_of(file.tensors):
        return ""
    if found == ours["tensors"]:
        return "has other sizes than this rehearsal needs"
    differing = _first_difference(path, file)
    raise ExistingFileError(
        f"{path} holds other tensors than the rehearsal wrote ({differing}); it may be yours and is not overwritten: "
        "move it away and run the same command again."
    )


def _first_difference(path: Path, file: WeightFile) -> str:
    expected = dict(file.tensors)
    for name, value in read_tensors(path, "meta"):
        shape, dtype = expected.pop(name, ((), None))
        if (tuple(value.shape), value.dtype) != (shape, dtype):
            kind = str(value.dtype).removeprefix("torch.")
            before = f"{shape} of {str(dtype).removeprefix('torch.')}" if dtype else "no such tensor"
            return f"{name} is {tuple(value.shape)} of {kind}, expected {before}"
    return f"{next(iter(expected))} is missing"


def check_room(missing: Mapping[Path, WeightFile], more: int, folder: Path, free: int | None = None) -> str:
    """The sentence about what will be written below `folder`: the sizes of the files, `more` bytes for what the stages
    write, what is free there. `free` None asks the disk. Raises InputError where that is less."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free if free is None else free
    size = sum(file.bytes for file in missing.values())
    sentence = f"{gigabytes(size)} of random weights and {gigabytes(more)} of results go to {folder}"
    if size + more > free:
        raise InputError(
            f"{sentence}, where only {gigabytes(free)} are free; free {gigabytes(size + more - free)} more, choose "
            "another --to, or rehearse with fewer blocks: --layers N."
        )
    return f"{sentence}, {gigabytes(free)} are free"


def write_missing(roles: Sequence[RandomRole], missing: Mapping[Path, WeightFile], say: Callable[[str], None]) -> None:
    """Write these files, each whole or not at all; `say` gets a sentence for each. Raises DiskFullError."""
    values = RandomValues()
    for role in roles:
        todo = [file for file in role.files if role.folder / file.path in missing]
        if todo:
            # First, so that after a kill everything below is known to be ours.
            unwritten = {"role": role.role, "bytes": 0, "tensors": "", "written": False}
            _mark(role.folder, {file.path: unwritten for file in todo})
            _remove_others(role)
        for file in todo:
            path = role.folder / file.path
            say(f"writing {path}, {gigabytes(file.bytes)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_beside(path)
            try:
                with disk_guard(path):
                    _write(temporary, file, values)
                # Not synced to the disk: after a crash of the machine the size tells what is lost.
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            entry = {"bytes": path.stat().st_size, "tensors": _print_of(file.tensors), "written": True}
            _mark(role.folder, {file.path: {"role": role.role, **entry}})


def read_marker(folder: Path) -> dict[str, dict[str, Any]]:
    """Path inside the folder -> what was written there; {} where there is no marker."""
    marker = folder / MARKER
    return dict(read_json(marker, "files")["files"]) if marker.exists() else {}


def _mark(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    _write_marker(folder, read_marker(folder) | dict(files))


def _write_marker(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    why = "Random numbers in the shapes of published weights, written by omniavatar rehearse: of no other use."
    write_json(folder / MARKER, {"what": why, "files": files})


def _remove_others(role: RandomRole) -> None:
    """Remove the shards of another depth, which no index names any more."""
    names, marker = {file.path for file in role.files}, read_marker(role.folder)
    others = [name for name, entry in marker.items() if entry["role"] == role.role and name not in names]
    for name in others:
        (role.folder / name).unlink(missing_ok=True)
    _write_marker(role.folder, {name: entry for name, entry in marker.items() if name not in others})


def bytes_of_ours(root: Path) -> int:
    """Size of the files below `root` that markers say are ours."""
    files = [marker.parent / name for marker in root.rglob(MARKER) for name in read_marker(marker.parent)]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove_random(root: Path) -> int:
    """Delete every file below `root` that a marker says is ours, and folders that are empty then; returns the bytes."""
    freed = 0
    for marker in sorted(root.rglob(MARKER)):
        folder = marker.parent
        for name in read_marker(folder):
            path = folder / name
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                freed += path.stat().st_size
                path.unlink()
        marker.unlink()
    for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()
    return freed


def identity(paths: Mapping[str, Path], roles: Sequence[RandomRole]) -> str:
    """What the results of a stage depend on: the tensors of random weights, sizes and times of the others."""
    own = {role.role: [[file.path, _print_of(file.tensors), file.text] for file in role.files] for role in roles}
    others = {
        role: [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in _all_files(path)]
        for role, path in paths.items()
        if role not in own
    }
    return fingerprint([own, others])


def _all_files(path: Path) -> list[Path]:
    return sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _print_of(tensors: Tensors) -> str:
    rows = sorted((name, list(shape), str(dtype)) for name, (shape, dtype) in tensors.items())
    return fingerprint(rows) if rows else ""


def _write(path: Path, file: WeightFile, values: RandomValues) -> None:
    if not file.tensors:
        path.write_text(file.text, "utf-8")
    elif path.suffix == ".safetensors":
        _write_safetensors(path, file.tensors, values)
    else:
        _write_torch(path, file.tensors, values)


def _write_safetensors(path: Path, tensors: Tensors, values: RandomValues) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in tensors.items():
            values.tensor(name, shape, dtype).view(-1).view(torch.uint8).numpy().tofile(file)


class _Storage:
    """Stands in the pickle of a torch file for the numbers of one tensor, which are a record of their own."""

    def __init__(self, key: int, dtype: torch.dtype, count: int) -> None:
        self.id = ("storage", _STORAGES[dtype], str(key), "cpu", count)


class _Empty:
    """A tensor of a torch file, pickled without its numbers."""

    def __init__(self, key: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        strides = torch.empty(shape, device="meta").stride()
        storage = _Storage(key, dtype, torch.Size(shape).numel())
        hooks: OrderedDict[str, Any] = OrderedDict()
        self.arguments = (storage, 0, shape, strides, False, hooks)

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, _Storage) else None


def _write_torch(path: Path, tensors: Tensors, values: RandomValues) -> None:
    """What `torch.save` writes of a dict of tensors, which it would need to have in memory all at once."""
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump({name: _Empty(key, *what) for key, (name, what) in enumerate(tensors.items())})
    with open(path, "wb") as file:  # by its path the archive would get the name of a temporary file
        writer: Any = torch._C.PyTorchFileWriter(file)
        writer.write_record("data.pkl", pickled.getvalue(), len(pickled.getvalue()))
        writer.write_record("byteorder", b"little", 6)
        for key, (name, (shape, dtype)) in enumerate(tensors.items()):
            storage = values.tensor(name, shape, dtype).untyped_storage()
            writer.write_record(f"data/{key}", storage, storage.nbytes())
        writer.write_end_of_file()
