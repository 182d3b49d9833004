"""Shards: webdataset tars of encoded clips, with a Parquet index of every sample's place, size and token counts.

A sample is two members, `<clip_id>.tensors.safetensors` and `<clip_id>.meta.json`. The same samples in the same order
give the same bytes.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from common.runs import atomic_write, disk_guard, plain, sync, write_json

FPS = 25
TENSORS, META = ".tensors.safetensors", ".meta.json"
TAR_END = b"\0" * (2 * tarfile.BLOCKSIZE)
NEXT = ".next"  # folder of files that are about to replace those of the same name, all of them
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),  # file name beside the index
        ("offset", pa.int64()),  # of the sample's first tar header
        ("size", pa.int64()),  # bytes of both members with headers and padding
        ("sha256", pa.string()),  # of those bytes
        ("frames", pa.int32()),
        ("latent_frames", pa.int32()),
        ("latent_height", pa.int32()),
        ("latent_width", pa.int32()),
        ("tokens_per_frame", pa.int32()),  # per latent frame, after 2 x 2 patches
        ("text_tokens", pa.int32()),
        ("seconds", pa.float64()),
    ]
)


class ShardError(ValueError):
    """A sample that cannot be stored, or a shard that is not what its index says."""


class ShardWriter:
    """Writes `shard-000000.tar` ... of `samples_per_shard` samples and, at the end, `index.parquet`.

    A shard is written beside and renamed, then its own part of the index is. After a kill the next writer keeps the
    finished shards and throws the unfinished one away; feed it the same clips in the same order (those `in` the writer
    are passed over) and the bytes equal an uninterrupted run's. `fingerprint` stands for all that the samples depend
    on, the list of clips included: finished shards of another fingerprint are removed.
    """

    def __init__(self, folder: Path | str, samples_per_shard: int, fingerprint: str = "") -> None:
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard is {samples_per_shard}: expected at least 1.")
        self.folder, self.samples_per_shard, self.fingerprint = Path(folder), samples_per_shard, fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        finish_removal(self.folder)
        self._file: BinaryIO | None = None
        self._rows: list[dict[str, Any]] = []
        self._parts = self._keep_finished()
        columns = [pq.read_table(part, columns=["clip_id"])["clip_id"].to_pylist() for part in self._parts]
        self._stored = {clip for column in columns for clip in column}

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._stored

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        elif self._file is not None:
            with suppress(OSError):  # on a full disk closing fails once more
                self._file.close()

    def add(self, clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
        """Store one sample; False when it is there already.

        `tensors` must hold "latents" (16, T, h, w) and "text" (n, dim); `meta` must hold "video_id" and "split".
        Errors: ShardError naming what is missing; DiskFullError.
        """
        if clip_id in self._stored:
            return False
        row = _describe(clip_id, tensors, meta)
        data = _sample(clip_id, tensors, meta)
        with disk_guard(self._tar):
            if self._file is None:
                self._file = open(self._partial, "wb")  # noqa: SIM115 - held over many calls
            row |= {"shard": self._tar.name, "offset": self._file.tell(), "size": len(data)}
            self._file.write(data)
        self._rows.append(row | {"sha256": hashlib.sha256(data).hexdigest()})
        self._stored.add(clip_id)
        if len(self._rows) == self.samples_per_shard:
            self._finish_shard()
        return True

    def close(self) -> None:
        """Finish the last shard and write the merged `index.parquet`. Errors: DiskFullError."""
        if self._rows:
            self._finish_shard()
        with atomic_write(self.folder / "index.parquet") as temporary:
            _merge_parts(temporary, self._parts)

    @property
    def _tar(self) -> Path:
        return self.folder / f"shard-{len(self._parts):06d}.tar"

    @property
    def _partial(self) -> Path:
        return self._tar.with_suffix(".tar.partial")

    def _finish_shard(self) -> None:
        assert self._file is not None
        with disk_guard(self._tar):
            self._file.write(TAR_END)
            self._file.close()
            sync(self._partial)
            os.replace(self._partial, self._tar)
        part = self._tar.with_suffix(".parquet")
        with atomic_write(part) as temporary:
            _write_part(temporary, pa.Table.from_pylist(self._rows, INDEX_SCHEMA), self.fingerprint)
        self._parts.append(part)
        self._file, self._rows = None, []

    def _keep_finished(self) -> list[Path]:
        """Parts of the shards that are whole and ours, in order; everything else of the set is removed."""
        parts: list[Path] = []
        for part in sorted(self.folder.glob("shard-*.parquet")):
            stored = (pq.read_schema(part).metadata or {}).get(b"fingerprint", b"").decode()
            expected = self.folder / f"shard-{len(parts):06d}.parquet"
            if part == expected and stored == self.fingerprint and part.with_suffix(".tar").exists():
                parts.append(part)
        wanted = {file for part in parts for file in (part, part.with_suffix(".tar"))}
        stale = [file for file in self.folder.glob("shard-*") if file not in wanted]
        if stale:
            (self.folder / "index.parquet").unlink(missing_ok=True)
        for file in stale:
            file.unlink()
        return parts


class ShardReader:
    """Random access to the samples of a shard folder; holds no open file, so it may be pickled and forked."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.index = read_index(folder)

    def __len__(self) -> int:
        return self.index.num_rows

    def sample(self, row_number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and metadata of one row of the index. Errors: ShardError when the bytes are not those indexed."""
        row = self.index.slice(row_number, 1).to_pylist()[0]
        path = self.folder / row["shard"]
        if not path.exists():
            raise ShardError(f"{path} is missing but index.parquet names it; write the shards again.")
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), row["size"], row["offset"])
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise ShardError(f"{path}: sample {row['clip_id']} differs from its checksum; write the shards again.")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            tensors, meta = (members[row["clip_id"] + suffix] for suffix in (TENSORS, META))
            assert tensors is not None and meta is not None
            return safetensors.numpy.load(tensors.read()), json.loads(meta.read())


def read_index(folder: Path | str) -> pa.Table:
    """The index of a shard folder, rows in the order they were written. Errors: FileNotFoundError; ShardError when the
    removal of samples was interrupted."""
    path = Path(folder) / "index.parquet"
    if (path.parent / NEXT).exists():
        raise ShardError(f"The removal of samples from {folder} was interrupted; run the same takedown again.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the shards are absent or unfinished; run the latents job.")
    return pq.read_table(path, schema=INDEX_SCHEMA)


def remove_samples(
    folder: Path | str, clip_ids: Collection[str], fingerprint: str = "", files: Mapping[str, Any] | None = None
) -> int:
    """Rewrite the shards that hold one of these clips without it, and the index; returns how many samples went.

    The other samples keep their bytes, order and shard; a shard may be left empty. All parts of the index get
    `fingerprint`, for the writer that goes on here, and `files` (name -> JSON value) are written beside, in the same
    step: killed at any moment, all files are the old ones or, after the next call, the new ones. Errors: DiskFullError;
    ShardError for a shard that is missing.
    """
    folder, doomed = Path(folder), set(clip_ids)
    finish_removal(folder)
    for torn in folder.glob("shard-*.tar.partial"):  # it may hold one of them, and is thrown away by any writer
        torn.unlink()
    tables = {part: pq.read_table(part, schema=INDEX_SCHEMA) for part in sorted(folder.glob("shard-*.parquet"))}
    ids = [clip for table in tables.values() for clip in table["clip_id"].to_pylist()]
    if doomed.isdisjoint(ids):
        return 0
    staged = folder / f"{NEXT}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    with disk_guard(staged):
        for part, table in tables.items():
            if not doomed.isdisjoint(table["clip_id"].to_pylist()):
                table = _copy_shard(part.with_suffix(".tar"), staged, table, doomed)
            _write_part(staged / part.name, table, fingerprint)
        if (folder / "index.parquet").exists():
            _merge_parts(staged / "index.parquet", [staged / part.name for part in tables])
        for name, value in (files or {}).items():
            write_json(staged / name, value)
        for file in (*staged.iterdir(), staged):
            sync(file)
    os.rename(staged, folder / NEXT)
    finish_removal(folder)
    return len(doomed.intersection(ids))


def finish_removal(folder: Path) -> None:
    """Bring a removal that was killed after its decision to its end; without one there is nothing to do."""
    waiting = folder / NEXT
    if not waiting.exists():
        return
    for file in sorted(waiting.iterdir()):
        os.replace(file, folder / file.name)
    sync(folder)
    waiting.rmdir()


def _copy_shard(tar: Path, target: Path, table: pa.Table, doomed: set[str]) -> pa.Table:
    """Write a shard of the same name into the folder `target` without the doomed samples; returns its part of the
    index."""
    if not tar.exists():
        raise ShardError(f"{tar} is missing but its index is there; write the shards again.")
    rows = [row for row in table.to_pylist() if row["clip_id"] not in doomed]
    with open(tar, "rb") as old, open(target / tar.name, "wb") as new:
        for row in rows:
            old.seek(row["offset"])
            row["offset"] = new.tell()
            new.write(old.read(row["size"]))
        new.write(TAR_END)
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)


def _write_part(path: Path, table: pa.Table, fingerprint: str) -> None:
    pq.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), path, compression="zstd")


def _merge_parts(path: Path, parts: list[Path]) -> None:
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part, schema=INDEX_SCHEMA))


def _describe(clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Any]:
    if not clip_id or set(clip_id) & set("./"):
        raise ShardError(f"clip_id '{clip_id}' must be without '.' and '/': webdataset cuts names at the first dot.")
    missing = [f"tensor '{name}'" for name in ("latents", "text") if name not in tensors]
    missing += [f"meta '{name}'" for name in ("video_id", "split") if name not in meta]
    if missing:
        raise ShardError(f"Sample {clip_id} lacks {', '.join(missing)}; add it before storing the sample.")
    if tensors["latents"].ndim != 4 or tensors["text"].ndim != 2:
        shapes = f"latents {tensors['latents'].shape} and text {tensors['text'].shape}"
        raise ShardError(f"Sample {clip_id} has {shapes}; expected (16, T, h, w) and (n, dim).")
    _, latent_frames, height, width = tensors["latents"].shape
    frames = 4 * (latent_frames - 1) + 1
    return {
        "clip_id": clip_id,
        "video_id": meta["video_id"],
        "split": meta["split"],
        "frames": frames,
        "latent_frames": latent_frames,
        "latent_height": height,
        "latent_width": width,
        "tokens_per_frame": (height // 2) * (width // 2),
        "text_tokens": tensors["text"].shape[0],
        "seconds": frames / FPS,
    }


def _sample(clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    text = json.dumps(plain(meta), sort_keys=True, ensure_ascii=False)
    return _member(clip_id + TENSORS, safetensors.numpy.save(arrays)) + _member(clip_id + META, text.encode())


def _member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # owner, group and time are zero: bytes depend on the content alone
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
