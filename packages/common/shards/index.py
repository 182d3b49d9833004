"""Index of a shard folder: a row per sample, in parts during writing and merged afterwards."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.constants import FPS
from common.errors import MissingFileError, damaged, shorten
from common.parquet import read_schema, read_table, reading_parquet
from common.runs import read_format_version, sync, write_format_version
from common.shards.sample import Packed, ShardError

INDEX = "index.parquet"
FORMAT_VERSION = 1  # of tars and index together; goes up when code of the version before could not read them
NEXT = ".next"  # folder of files that will replace those of the same name, all or none
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),  # file name beside the index
        ("offset", pa.int64()),  # of the sample's first tar header
        ("size", pa.int64()),  # bytes of both members with headers and padding
        ("checksum", pa.string()),  # xxh3 of everything before the first tensor, the checksums of the tensors included
        ("frames", pa.int32()),
        ("latent_frames", pa.int32()),
        ("latent_height", pa.int32()),
        ("latent_width", pa.int32()),
        ("tokens_per_frame", pa.int32()),  # per latent frame, after 2 x 2 patches
        ("tokens", pa.int32()),
        ("text_tokens", pa.int32()),
        ("audio_frames", pa.int32()),  # of audio features; 0 for a waveform
        ("seconds", pa.float64()),
        ("head_bytes", pa.int32()),  # before the first tensor
        ("whole_bytes", pa.int64()),  # of the tensors before the latents
        ("latents_bytes", pa.int64()),
        ("audio_bytes", pa.int64()),
        ("text_bytes", pa.int64()),
        ("references_bytes", pa.int64()),
    ]
)


def check_format(folder: Path | str) -> None:
    """Raise FormatVersionError for a shard folder of a version that this code cannot read."""
    read_format_version(folder, FORMAT_VERSION, "delete the folder and run the latents job")


def record_format(folder: Path | str) -> None:
    """Write the version of the format beside the shards."""
    write_format_version(folder, FORMAT_VERSION)


def read_index(folder: Path | str) -> pa.Table:
    """The index of a shard folder, rows in the order they were written.

    Raises FileNotFoundError; ShardError when the removal of samples was interrupted, or for shards of an older layout;
    FormatVersionError; DamagedFileError for an index that cannot be read, or names places that cannot be.
    """
    path = Path(folder) / INDEX
    check_format(folder)
    if (path.parent / NEXT).exists():
        raise ShardError(f"The removal of samples from {folder} was interrupted; run the same takedown again.")
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: the shards are absent or unfinished; run the latents job.")
    names = read_schema(path).names
    if missing := [name for name in INDEX_SCHEMA.names if name not in names]:
        raise ShardError(
            f"{path} lacks the column '{missing[0]}': its shards are of an older layout; run the latents job."
        )
    table = read_table(path, schema=INDEX_SCHEMA)
    if wrong := _wrong_place(table):
        raise damaged(path, wrong)
    return table


def _wrong_place(table: pa.Table) -> str:
    """What is impossible in an index: a value that is absent or too small, a file elsewhere, two samples in one place;
    "" when nothing is. Whether a shard is long enough is seen when it is read."""
    for name in INDEX_SCHEMA.names:
        if table[name].null_count:
            return f"a sample without '{name}'"
        least = 1 if name in ("size", "latent_frames", "head_bytes") else 0
        if pa.types.is_integer(table[name].type) and table.num_rows and pc.min(table[name]).as_py() < least:
            return f"'{name}' is {pc.min(table[name])}, expected at least {least}"
    odd = table["shard"].filter(pc.invert(pc.match_substring_regex(table["shard"], r"^shard-\d{6,}\.tar$")))
    if len(odd):
        return f"it names the shard {shorten(repr(odd[0].as_py()))}"
    offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
    together = pc.equal(table["shard"][1:], table["shard"][:-1]).to_numpy() if table.num_rows > 1 else np.empty(0, bool)
    # Compared without adding, which could overflow.
    overlapping = np.flatnonzero(together & (offsets[1:] - offsets[:-1] < sizes[:-1]))
    if len(overlapping):
        clip = table["clip_id"][int(overlapping[0]) + 1].as_py()
        return f"sample {shorten(clip)} begins before the one before it ends"
    return ""


def absent_tars(folder: Path, table: pa.Table) -> list[str]:
    """Names of the tars of an index, or of a part of one, that are not there or end before their last sample does."""
    ends = {row["shard"]: row["offset"] + row["size"] for row in table.select(["shard", "offset", "size"]).to_pylist()}
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 0 for name in ends}
    return [name for name, end in ends.items() if sizes[name] < end]


def index_row(
    clip_id: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any], packed: Packed
) -> dict[str, Any]:
    """The index row of a sample, without its shard and offset."""
    _, latent_frames, height, width = tensors["latents"].shape
    frames = 4 * (latent_frames - 1) + 1
    return packed.sizes | {
        "clip_id": clip_id,
        "video_id": meta["video_id"],
        "split": meta["split"],
        "size": packed.size,
        "checksum": packed.checksum,
        "frames": frames,
        "latent_frames": latent_frames,
        "latent_height": height,
        "latent_width": width,
        "tokens_per_frame": (height // 2) * (width // 2),
        "tokens": latent_frames * (height // 2) * (width // 2),
        "text_tokens": tensors["text"].shape[0],
        "seconds": frames / FPS,
    }


def write_part(path: Path, table: pa.Table, fingerprint: str) -> None:
    """Write the index of one shard."""
    pq.write_table(table.replace_schema_metadata({"fingerprint": fingerprint}), path, compression="zstd")


def read_part(path: Path) -> pa.Table:
    """Read the index of one shard, of any layout."""
    with reading_parquet(path), pq.ParquetFile(path) as file:
        return file.read(use_threads=False).replace_schema_metadata(None)


def part_fingerprint(path: Path) -> str | None:
    """Fingerprint of what a shard was made from; None for a shard of an older layout."""
    schema = read_schema(path)
    return (schema.metadata or {}).get(b"fingerprint", b"").decode() if schema.names == INDEX_SCHEMA.names else None


def merge_parts(path: Path, parts: list[Path]) -> None:
    """Write the merged index of all shards."""
    schema = read_schema(parts[0]).remove_metadata() if parts else INDEX_SCHEMA
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(read_part(part))


def finish_removal(folder: Path) -> None:
    """Finish a removal that was killed after its commit; does nothing without one."""
    waiting = folder / NEXT
    if not waiting.exists():
        return
    for file in sorted(waiting.iterdir()):
        os.replace(file, folder / file.name)
    sync(folder)
    waiting.rmdir()
