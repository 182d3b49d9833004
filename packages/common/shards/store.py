"""Shards: webdataset tars of encoded clips, with a Parquet index of every sample's place, size and token counts.

A sample is two members, see `common.shards.sample`. The same samples in the same order give the same bytes.
"""

import errno
import mmap
import os
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from common.parquet import read_table
from common.runs import HOST, atomic_write, disk_guard, sync
from common.shards.index import (
    INDEX,
    INDEX_SCHEMA,
    absent_tars,
    check_format,
    finish_removal,
    index_row,
    merge_parts,
    part_fingerprint,
    read_index,
    read_part,
    record_format,
    write_part,
)
from common.shards.sample import ShardError, pack_sample, unpack_head, unpack_tensors, write_parts

# Reads a range of a mapping, so that a disk error is an OSError; at the first access it would be a fatal SIGBUS.
_POPULATE_READ = 22
TAR_END = b"\0" * (2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes `shard-000000.tar` ... of `samples_per_shard` samples and, at the end, `index.parquet`.

    A shard is written to a temporary file and renamed, then its part of the index is. After a kill the next writer
    keeps finished shards and discards the unfinished one; given the same clips in the same order (those `in` the writer
    are skipped) the bytes equal those of an uninterrupted run. `fingerprint` identifies all that the samples depend on,
    the list of clips included: finished shards of another fingerprint are removed.
    """

    def __init__(self, folder: Path | str, samples_per_shard: int, fingerprint: str = "") -> None:
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard is {samples_per_shard}: expected at least 1.")
        self.folder, self.samples_per_shard, self.fingerprint = Path(folder), samples_per_shard, fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        check_format(self.folder)
        finish_removal(self.folder)
        self._owner = f"{HOST}-{os.getpid()}"
        self._file: FileIO | None = None
        self._rows: list[dict[str, Any]] = []
        self._parts = self._keep_finished()
        columns = [read_table(part, columns=["clip_id"])["clip_id"].to_pylist() for part in self._parts]
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
        """Store one sample; False when it is stored already.

        `tensors` must hold "latents" (16, T, h, w) and "text" (n, dim), "audio" by frame (F, C) with F up to
        4 (T - 1) + 1 unless it is a waveform; `meta` must hold "video_id" and "split". Raises ShardError naming what
        is missing; DiskFullError.
        """
        if clip_id in self._stored:
            return False
        _check(clip_id, tensors, meta)
        packed = pack_sample(clip_id, tensors, meta)
        with disk_guard(self._tar):
            if self._file is None:
                self._file = FileIO(self._partial, "w")
            place = {"shard": self._tar.name, "offset": self._file.tell()}
            write_parts(self._file, packed.parts)
        self._rows.append(index_row(clip_id, tensors, meta, packed) | place)
        self._stored.add(clip_id)
        if len(self._rows) == self.samples_per_shard:
            self._finish_shard()
        return True

    def close(self) -> None:
        """Finish the last shard and write the merged `index.parquet`. Raises DiskFullError."""
        if self._rows:
            self._finish_shard()
        record_format(self.folder)
        with atomic_write(self.folder / INDEX) as temporary:
            merge_parts(temporary, self._parts)

    @property
    def _tar(self) -> Path:
        return self.folder / f"shard-{len(self._parts):06d}.tar"

    @property
    def _partial(self) -> Path:
        return self._tar.with_suffix(f".{self._owner}.tar.partial")

    def _finish_shard(self) -> None:
        assert self._file is not None
        with disk_guard(self._tar):
            write_parts(self._file, [memoryview(TAR_END)])
            self._file.close()
            sync(self._partial)
            os.replace(self._partial, self._tar)
        part = self._tar.with_suffix(".parquet")
        with atomic_write(part) as temporary:
            write_part(temporary, pa.Table.from_pylist(self._rows, INDEX_SCHEMA), self.fingerprint)
        self._parts.append(part)
        self._file, self._rows = None, []

    def _keep_finished(self) -> list[Path]:
        """Parts of finished shards of our fingerprint, in order; all other shard files are removed."""
        parts: list[Path] = []
        for part in sorted(self.folder.glob("shard-*.parquet")):
            expected = self.folder / f"shard-{len(parts):06d}.parquet"
            ours = part_fingerprint(part) == self.fingerprint
            if part == expected and ours and not absent_tars(self.folder, read_part(part)):
                parts.append(part)
        referenced = {file for part in parts for file in (part, part.with_suffix(".tar"))}
        stale = [file for file in self.folder.glob("shard-*") if file not in referenced]
        if stale:
            (self.folder / INDEX).unlink(missing_ok=True)
        for file in stale:
            file.unlink()
        return parts


class ShardReader:
    """Random access to the samples of a shard folder; holds no open file, so it may be pickled, forked and shared by
    threads. Every byte returned has been verified against its checksum."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.index = read_index(folder)

    def __len__(self) -> int:
        return self.index.num_rows

    def sample(self, row: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and metadata of one row of the index. Raises ShardError when the bytes are not those indexed."""
        return self._read(self.index.slice(row, 1).to_pylist()[0], None)

    def window(self, row: int, latent_frames: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As `sample`, of the clip's beginning: that many latent frames (or all there are) and their audio frames. Only
        their bytes are read, and the tensors that have no frames, whole.

        Latents (16, k, h, w) are a view of what is stored frame by frame. Raises ShardError.
        """
        if latent_frames < 1:
            raise ShardError(f"A window of {latent_frames} latent frames was requested; expected at least 1.")
        return self._read(self.index.slice(row, 1).to_pylist()[0], latent_frames)

    def _read(self, row: dict[str, Any], latent_frames: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        path, label = self.folder / row["shard"], f"{self.folder / row['shard']}: sample {row['clip_id']}"
        frames = min(latent_frames or row["latent_frames"], row["latent_frames"])
        # Two spans, as byte offsets from the start of the sample: all up to the last latent frame of the window, and
        # the audio of the window, which lies behind the rest of the latents.
        latents = row["head_bytes"] + row["whole_bytes"]
        early = latents + row["latents_bytes"] // row["latent_frames"] * frames
        late = latents + row["latents_bytes"]
        audio_frames = min(4 * (frames - 1) + 1, row["audio_frames"])
        end = late + (row["audio_bytes"] // row["audio_frames"] * audio_frames if audio_frames else 0)
        try:
            data = _map(path, row["offset"], [(0, early), (late, end)])
        except FileNotFoundError:
            raise ShardError(f"{path} is missing but {INDEX} names it; write the shards again.") from None
        head = data[: row["head_bytes"]].tobytes()
        if len(data) < end or xxh3_128_hexdigest(head) != row["checksum"]:
            raise ShardError(f"{label} differs from its checksum; write the shards again.")
        meta, header = unpack_head(head)
        return unpack_tensors(header, data[row["head_bytes"] : early], data[late:end], frames, label), meta


def _map(path: Path, offset: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes of a file from `offset` to the end of the last span, fewer when it ends earlier; the spans are read now.

    No copy: the array is a private mapping, and writing to it does not change the file. Raises OSError.
    """
    first = offset % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        size = min(first + spans[-1][1], os.fstat(file.fileno()).st_size - offset + first)
        if size <= first:
            return np.empty(0, np.uint8)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=offset - first)
    for begin, end in spans:
        start = (first + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            if start < min(first + end, size):
                mapped.madvise(_POPULATE_READ, start, min(first + end, size) - start)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel reads at the first access
                raise
    return np.frombuffer(mapped, np.uint8)[first:]


def _check(clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    if not clip_id or set(clip_id) & set("./"):
        raise ShardError(f"clip_id '{clip_id}' must be without '.' and '/': webdataset cuts names at the first dot.")
    missing = [f"tensor '{name}'" for name in ("latents", "text") if name not in tensors]
    missing += [f"meta '{name}'" for name in ("video_id", "split") if name not in meta]
    if missing:
        raise ShardError(f"Sample {clip_id} lacks {', '.join(missing)}; add it before storing the sample.")
    latents, text, audio = tensors["latents"], tensors["text"], tensors.get("audio")
    if latents.ndim != 4 or text.ndim != 2 or not latents.shape[1]:
        shapes = f"latents {latents.shape} and text {text.shape}"
        raise ShardError(f"Sample {clip_id} has {shapes}; expected (16, T, h, w) and (n, dim).")
    frames = 4 * (latents.shape[1] - 1) + 1
    if audio is not None and audio.ndim == 2 and len(audio) > frames:
        raise ShardError(f"Sample {clip_id} has audio of {len(audio)} frames; expected {frames} at most, as of video.")
