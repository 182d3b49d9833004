"""Bounds of foreign weight files and of the `config.json` beside them, checked before anything is built or allocated.

Imports no torch. Nothing is unpickled here: of a pickle only the names in it are read.
"""

import json
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from common.errors import UserError, shorten

Shapes = Mapping[str, tuple[int, ...]]

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library; the largest published has some 100 kB
MOST_TENSORS = 100_000  # of one file; the largest published has some 2,000
LARGEST_PICKLE = 256 * 2**20  # bytes of the pickle of a torch file, which names tensors and holds none
LARGEST_RATIO = 20  # of a packed file to its archive; weights shrink to a half at most
SLACK = 64 * 2**20  # bytes of small files, such as code, that may shrink further
SHOWN = 8  # problems of one config in a message
SMALL = 4096  # a size that costs nothing, whatever the weights are
_COUNT = re.compile(r"(layers|blocks|depth|levels|stages)$")  # of modules that are built one by one
_TOKEN_ID = re.compile(r"(_id|_index|_ids)$")
_UNBOUNDED = ("rope_theta", "rope_base")  # a base of angles, no size
# What pickles of tensors may call that takes memory by a number alone.
_ALLOCATES = ("builtins bytearray", "__builtin__ bytearray", "torch Tensor")
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}


class CheckpointError(UserError, ValueError):
    """A weight file that cannot be used; the message names the file and lists every problem found in it."""

    def __init__(self, source: Path | str, problems: list[str]):
        self.source, self.problems = str(source), problems
        listed = "\n  ".join(problems)
        super().__init__(f"{source} cannot be used, {len(problems)} problem(s):\n  {listed}")


class Header(NamedTuple):
    """One tensor: its type as safetensors names it, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file. Raises as `read_headers` does."""
    return {name: header.shape for name, header in read_headers(file).items()}


def read_headers(file: Path) -> dict[str, Header]:
    """Name -> type and shape of every tensor of a safetensors file, from its header alone.

    Raises CheckpointError unless the header fits the file, every shape its bytes, and the bytes of all tensors follow
    each other to the end of the file.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise _broken(file, f"its header would have {length} bytes, the file has {size}")
        text = opened.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        if len(header) > MOST_TENSORS:
            raise _broken(file, f"it lists {len(header)} tensors")
        entries = {name: (tuple(each["shape"]), each["dtype"], *each["data_offsets"]) for name, each in header.items()}
        by_place = sorted(entries.items(), key=lambda item: item[1][2:])
        end = 0
        for name, (shape, dtype, begin, stop) in by_place:
            if any(not _is_count(side) for side in (*shape, begin, stop)) or begin != end:
                raise _broken(file, f"{shorten(name)} lies at bytes {begin} to {stop}, the one before it ends at {end}")
            item_bytes = math.prod(shape) * _ITEM_BYTES.get(dtype, 1)
            if stop - begin != item_bytes and (dtype in _ITEM_BYTES or stop - begin > item_bytes):
                raise _broken(file, f"{shorten(name)} of shape {shorten(str(shape))} has {stop - begin} bytes")
            end = stop
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _broken(file, f"its header is no table of tensors, {type(error).__name__}") from error
    if end != size - 8 - length:
        raise _broken(file, f"its tensors have {end} bytes, {size - 8 - length} follow the header")
    return {name: Header(dtype, shape) for name, (shape, dtype, *_) in entries.items()}


def _broken(file: Path, why: str) -> CheckpointError:
    return CheckpointError(file, [f"not a readable safetensors file ({why}); fetch it again"])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_bomb(file: Path) -> None:
    """Check a zip archive, or a torch file of either format, before it is read: what it would unpack or allocate.

    Raises CheckpointError for an archive that unpacks to far more than it has bytes, and for a pickle that would take
    memory by a number alone. What is neither is left to its reader.
    """
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                check_archive(file, archive)
                for entry in archive.infolist():
                    if entry.filename.endswith("/data.pkl") or entry.filename == "data.pkl":
                        with archive.open(entry) as opened:
                            _check_pickle(file, opened)  # type: ignore[arg-type]
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # encrypted, unknown compression
            raise CheckpointError(file, [f"is no archive that can be read ({error}); fetch it again"]) from error
        return
    with open(file, "rb") as opened:
        if opened.read(1) == b"\x80":
            opened.seek(0)
            while opened.read(1) == b"\x80":  # torch before 1.6: several pickles, then the bytes of the tensors
                opened.seek(-1, 1)
                if not _check_pickle(file, opened):
                    break


def check_archive(file: Path, archive: zipfile.ZipFile) -> None:
    """Raises CheckpointError when the entries of a zip file claim far more bytes than the file could hold."""
    claimed, size = sum(entry.file_size for entry in archive.infolist()), file.stat().st_size
    if claimed > size * LARGEST_RATIO + SLACK:
        raise CheckpointError(
            file, [f"would unpack to {claimed} bytes from {size}, which no file of weights does; fetch it again"]
        )


def _check_pickle(file: Path, opened: BinaryIO) -> bool:
    """Whether one pickle was read to its end. Raises CheckpointError."""
    texts: list[str] = []
    try:
        for opcode, argument, position in pickletools.genops(opened):
            if position is not None and position > LARGEST_PICKLE:
                raise CheckpointError(file, [f"its list of tensors has over {LARGEST_PICKLE} bytes; fetch it again"])
            name = ""
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument)
            elif opcode.name == "STACK_GLOBAL":
                name = " ".join(texts[-2:])
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
            if name in _ALLOCATES:
                raise CheckpointError(file, [f"calls {name.replace(' ', '.')}, which no file of weights does"])
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        return False  # not a pickle to its end: its reader says so
    return True


def refuse_odd_tensors(file: Path, tensors: Mapping[str, Any]) -> None:
    """Raises CheckpointError for tensors of torch that are not plain arrays of numbers that lie in the file.

    A pickle may say that one stored number is a matrix of 10^9 rows; the first copy of it would take all memory.
    """
    odd = [name for name, tensor in tensors.items() if not is_dense(tensor)]
    if odd:
        raise CheckpointError(file, [f"{shorten(str(name))} is no plain array of numbers" for name in odd])
    problems = [
        f"{shorten(name)} of shape {shorten(str(tuple(tensor.shape)))} has {tensor.untyped_storage().nbytes()} bytes"
        for name, tensor in tensors.items()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ]
    if problems:
        raise CheckpointError(file, problems)


def is_dense(tensor: Any) -> bool:
    """Whether a value from a torch file is a tensor with its numbers: not sparse, quantised or without any."""
    plain = str(getattr(tensor, "layout", "")) == "torch.strided"
    return plain and not tensor.is_quantized and not tensor.is_meta


def layers(shapes: Shapes, prefix: str) -> int | None:
    """The number of layers numbered after `prefix` in the names of tensors; None without any."""
    numbers = (name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdecimal() and len(number) < 9), default=-1) or None


def side(shapes: Shapes, name: str, axis: int) -> int | None:
    """One side of the shape of a tensor; None when the weights have no such tensor."""
    shape = shapes.get(name, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def check_config(
    file: Path,
    config: Any,
    shapes: Shapes,
    sizes: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Compare a model's `config.json` with the shapes of its weights, before anything is built from it.

    `sizes`: what keys must be by the weights, those that are None excepted. `defaults`: values of the right type.
    Every other number must be finite and no larger than the largest side of any tensor, a number of layers no larger
    than the number of tensors; without `shapes`, as of a model to be trained from noise, only types count.
    Raises CheckpointError that names each value and what the weights have.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(file, [f"holds {shorten(repr(config))}; expected an object of settings"])
    problems = []
    sizes = {key: value for key, value in (sizes or {}).items() if value is not None}
    for key, expected in sizes.items():
        value = list(config[key]) if isinstance(config.get(key), tuple) else config.get(key)
        if key in config and (value != expected or type(value) is not type(expected)):
            problems.append(f"{key} is {_shown(value)}; the weights have {_shown(expected)}")
    for key, value in config.items():
        default = (defaults or {}).get(key)
        if key not in sizes and value is not None and default is not None and not _alike(value, default):
            problems.append(f"{key} is {_shown(value)}; expected a value such as {_shown(default)}")
    largest = max((each for shape in shapes.values() for each in shape), default=0)
    for key, number in _numbers(config):
        name = key.rpartition(".")[2]
        if key in sizes or (isinstance(number, float) and (math.isfinite(number) or defaults is None)):
            continue
        most = len(shapes) if _COUNT.search(name) else max(largest, SMALL)
        if isinstance(number, float):
            problems.append(f"{key} is {number}; expected a finite number")
        elif number < 0 and not _TOKEN_ID.search(name) and defaults is not None:
            problems.append(f"{key} is {_shown(number)}; expected 0 or more")
        elif shapes and number > most and name not in _UNBOUNDED:
            problems.append(f"{key} is {_shown(number)}; the {len(shapes)} tensors of the weights allow {most} at most")
    if problems:
        if len(problems) > SHOWN:
            problems = [*problems[:SHOWN], f"and {len(problems) - SHOWN} more"]
        raise CheckpointError(file, [*problems, "take the config.json that was published with these weights"])


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**18:  # Python refuses to print the longest
        return f"a number of about {int(value.bit_length() * 0.30103)} digits"
    return shorten(repr(value)) if not isinstance(value, (list, tuple, Mapping)) else shorten(json.dumps(value)[:500])


def _alike(value: object, default: object) -> bool:
    """Whether a value could be one of the setting whose default is given; sequences are compared by their first."""
    if isinstance(default, (list, tuple)):
        like = isinstance(value, (list, tuple))
        return like and all(_alike(each, default[0]) for each in value if default)  # type: ignore[attr-defined]
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default)) or isinstance(default, Mapping) and isinstance(value, Mapping)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a tree, under the path of its keys."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _numbers(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > 10 * SMALL:
            yield f"{key}.layers", len(value)
            return
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
