"""Byte layout of one sample: two members of a tar, arranged so that a window of its clip takes two short reads.

`<clip_id>.meta.json`, then `<clip_id>.tensors.safetensors`, which holds in this order

    its header
    the tensors that are always read whole, sorted by name: references, text, a waveform
    "latents", stored as (T, 16, h, w): the first k latent frames lie together; readers hand out (16, T, h, w)
    "audio" (F, C), where it is per video frame

The header has a checksum of every piece: a tensor read whole, a latent frame, the audio of a latent frame. The index
has one of everything before the first tensor. So a window is verified without reading the rest.
"""

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128_hexdigest

from common.errors import UserError, shorten
from common.runs import plain

META, TENSORS = ".meta.json", ".tensors.safetensors"
CHECKSUMS = "xxh3_64"  # key in the header's metadata: 16 hexadecimal digits for each piece
DTYPES = {
    "float16": "F16", "float32": "F32", "float64": "F64", "uint8": "U8",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
}  # fmt: skip
_FROM_NAME = {name: np.dtype(dtype) for dtype, name in DTYPES.items()}
_MOST_PARTS = os.sysconf("SC_IOV_MAX")
_TAR_SIZE = slice(124, 135)  # octal, in a tar header


class ShardError(UserError, ValueError):
    """A sample that cannot be stored, or a shard that is not what its index says."""


@dataclass(frozen=True)
class Packed:
    """A sample ready to be written, as memory buffers of `size` bytes altogether.

    `checksum` (32 hexadecimal digits over everything before the first tensor, the other checksums included) and `sizes`
    are columns of the index.
    """

    parts: list[memoryview]
    size: int
    checksum: str
    sizes: dict[str, int]


def pack_sample(clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Packed:
    """Both members of a sample; arrays already in the stored layout are not copied. Raises ShardError."""
    stored = _as_stored(tensors)
    header, parts = _pack(stored)
    text = json.dumps(plain(meta), sort_keys=True, ensure_ascii=False).encode()
    size = len(header) + sum(array.nbytes for array in stored.values())
    head = _tar_header(clip_id + META, len(text)) + text + _padding(len(text))
    head += _tar_header(clip_id + TENSORS, size) + header
    fill = _padding(size)
    whole = [memoryview(head), *parts, memoryview(fill)]
    sizes = _sizes(stored) | {"head_bytes": len(head)}
    return Packed(whole, len(head) - len(header) + size + len(fill), xxh3_128_hexdigest(head), sizes)


def pack_tensors(tensors: Mapping[str, np.ndarray]) -> list[memoryview]:
    """The safetensors member alone, as memory buffers. Raises ShardError."""
    header, parts = _pack(_as_stored(tensors))
    return [memoryview(header), *parts]


def write_parts(file: FileIO, parts: Sequence[memoryview]) -> None:
    """Write memory buffers, unbuffered, in few system calls. Raises OSError."""
    for start in range(0, len(parts), _MOST_PARTS):
        batch = parts[start : start + _MOST_PARTS]
        size = sum(part.nbytes for part in batch)
        done = os.writev(file.fileno(), batch)
        unwritten = memoryview(b"".join(batch))[done:] if done < size else memoryview(b"")
        while unwritten:  # a nearly full disk, or more than one call may write
            unwritten = unwritten[file.write(unwritten) :]


def unpack_head(head: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and safetensors header from the bytes before the first tensor."""
    length = int(head[_TAR_SIZE], 8)
    meta = json.loads(head[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + length])
    member = tarfile.BLOCKSIZE + length + len(_padding(length))
    return meta, json.loads(head[member + tarfile.BLOCKSIZE + 8 :])


def unpack_tensors(
    header: Mapping[str, Any], early: np.ndarray, late: np.ndarray, latent_frames: int, label: str
) -> dict[str, np.ndarray]:
    """The tensors of a window of `latent_frames`: views into `early`, the bytes from the first tensor on, and into
    `late`, the bytes of the audio by frame. Raises ShardError, starting with `label`, for a damaged piece."""
    checksums = np.frombuffer(bytes.fromhex(header["__metadata__"][CHECKSUMS]), ">u8").tolist()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        by_frame = _is_by_frame(name, shape)
        if by_frame and shape[0] > end - begin:
            raise ShardError(f"{label}: '{name}' cannot have {shape[0]} frames in its bytes; write the shards again.")
        cuts = _cuts(name, shape, end - begin)
        count = min(len(cuts) - 1, latent_frames) if by_frame else 1
        data = late[: cuts[count]] if name == "audio" and by_frame else early[begin : begin + cuts[count]]
        if [xxh3_64_intdigest(data[a:b].data) for a, b in pairwise(cuts[: count + 1])] != checksums[:count]:
            raise ShardError(f"{label} differs from its checksum in '{name}'; write the shards again.")
        checksums = checksums[len(cuts) - 1 :]
        rows = (cuts[count] * shape[0] // cuts[-1], *shape[1:]) if by_frame else shape
        array = data.view(_FROM_NAME[entry["dtype"]]).reshape(rows)
        array = array if array.flags.aligned else array.copy()
        tensors[name] = array.swapaxes(0, 1) if name == "latents" else array
    return tensors


def read_tensors(data: np.ndarray, label: str) -> dict[str, np.ndarray]:
    """All tensors of the bytes of a safetensors member. Raises ShardError, starting with `label`."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    try:
        header = json.loads(data[8:start].tobytes())
        late = start + header.get("audio", {"data_offsets": (0,)})["data_offsets"][0]
        return unpack_tensors(header, data[start:], data[late:], header["latents"]["shape"][0], label)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{label} has no header that can be read ({error}); write it again.") from error


def _as_stored(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with their stored shapes, in file order; contiguous except for latents."""
    wrong = [f"'{name}' of {array.dtype.name}" for name, array in tensors.items() if array.dtype.name not in DTYPES]
    if wrong:
        raise ShardError(f"Tensors {', '.join(wrong)} cannot be stored; expected one of {', '.join(DTYPES)}.")

    def place(name: str) -> tuple[bool, bool, str]:
        by_frame = _is_by_frame(name, tensors[name].shape)
        return by_frame, by_frame and name == "audio", name

    named = ((name, tensors[name]) for name in sorted(tensors, key=place))
    return {name: array.swapaxes(0, 1) if name == "latents" else np.asarray(array, order="C") for name, array in named}


def _pack(stored: Mapping[str, np.ndarray]) -> tuple[bytes, list[memoryview]]:
    """Header of the safetensors member, padded to 8 bytes, and all parts of all pieces."""
    pieces = [piece for name, array in stored.items() for piece in _pieces(name, array)]
    entries: dict[str, Any] = {"__metadata__": {CHECKSUMS: "".join(map(_checksum, pieces))}}
    begin = 0
    for name, array in stored.items():
        place = [begin, begin + array.nbytes]
        entries[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        begin = place[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [part.data for piece in pieces for part in piece]


def _pieces(name: str, array: np.ndarray) -> list[list[np.ndarray]]:
    """Pieces with a checksum each, as lists of arrays that are contiguous in memory."""
    if name == "latents":
        # (T, 16, h, w), usually a view of (16, T, h, w): copying it would cost as much as writing it.
        return [
            [frame] if frame.flags.c_contiguous else [np.asarray(part, order="C") for part in frame] for frame in array
        ]
    flat = array.reshape(-1).view(np.uint8)
    return [[flat[a:b]] for a, b in pairwise(_cuts(name, array.shape, array.nbytes))]


def _checksum(piece: Sequence[np.ndarray]) -> str:
    digest = xxh3_64()
    for part in piece:
        digest.update(part.data)
    return digest.hexdigest()


def _sizes(stored: Mapping[str, np.ndarray]) -> dict[str, int]:
    by_frame = {name for name, array in stored.items() if _is_by_frame(name, array.shape)}
    sizes = {name: array.nbytes for name, array in stored.items()}
    return {f"{name}_bytes": sizes.get(name, 0) for name in ("latents", "audio", "text", "references")} | {
        "whole_bytes": sum(size for name, size in sizes.items() if name not in by_frame),
        "audio_frames": len(stored["audio"]) if "audio" in by_frame else 0,
    }


def _is_by_frame(name: str, shape: tuple[int, ...]) -> bool:
    return name == "latents" or (name == "audio" and len(shape) == 2)


def _cuts(name: str, shape: tuple[int, ...], size: int) -> list[int]:
    """Byte offsets at which the pieces of a tensor of `size` bytes begin, and the end: a piece is a latent frame, the
    audio frames of a latent frame (one, then four each), else the whole tensor."""
    if not _is_by_frame(name, shape) or not shape[0]:
        return [0, size]
    step = size // shape[0]
    firsts = range(shape[0]) if name == "latents" else [0, *range(1, shape[0], 4)]
    return [first * step for first in firsts] + [size]


def refuse_odd_members(tar: tarfile.TarFile, size: int) -> None:
    """Raises ShardError unless every member of a tar of `size` bytes is a plain file whose bytes lie in it.

    A sparse member may claim any number of zeros, and reading it takes memory for them.
    """
    for member in tar:
        if not member.isreg() or member.issparse() or member.offset_data + member.size > size:
            raise ShardError(f"'{shorten(member.name)}' is no plain file within its shard; write the shards again.")


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # owner, group and time are zero: bytes depend on the content alone
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
