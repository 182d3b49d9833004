"""Verification of shards: reads every byte again and compares it with index, checksums and SHA-256."""

import errno
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from common.errors import DamagedFileError, MissingFileError
from common.ledger.jsonlines import JsonLines
from common.progress import progress
from common.runs import RunFolder, fingerprint
from common.shards.index import INDEX, read_part
from common.shards.sample import META, TENSORS, ShardError, refuse_odd_members
from common.shards.store import TAR_END, ShardReader
from latents.constants import CONTENTS, FILE_NAME, stored_widths

LOG = "verify.jsonl"  # in the run's cache: shards checked by an unfinished verification


@dataclass
class Verdict:
    """Result of a verification: amount read, and findings as (clip_id or file name, what is wrong with it)."""

    samples: int = 0
    size: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per finding, and the totals."""
        findings = [f"BAD {name}: {why}" for name, why in self.bad]
        return [*findings, f"{self.samples} samples, {self.size / 1e9:.3g} GB read again, {len(self.bad)} bad"]


def verify_shards(run: RunFolder) -> Verdict:
    """Read all shards of a run again, and the constants beside them. A stopped verification resumes at the next shard;
    in a folder that cannot be written to it begins again.

    Raises FileNotFoundError; ShardError and DamagedFileError for an index that cannot be used at all.
    """
    reader, verdict = ShardReader(run.shards), Verdict()
    rows = reader.index.to_pylist()
    verdict.bad += _constants_findings(run.shards)
    verdict.bad += _index_findings(run.shards, rows)
    shards: dict[str, list[int]] = {file.name: [] for file in run.shards.glob("shard-*.tar")}
    for number, row in enumerate(rows):
        shards.setdefault(row["shard"], []).append(number)
    log = JsonLines(run.root / "cache" / LOG)  # run.cache would create the folder
    earlier = {(row["shard"], row["stamp"]): row["bad"] for row in log.rows()}
    for shard in progress(sorted(shards), "verify"):
        path, held = run.shards / shard, {number: rows[number] for number in shards[shard]}
        stamp = shard_stamp(path, held)
        if (bad := earlier.get((shard, stamp))) is None:
            bad = list(_shard_findings(path, held, reader))
            with _read_only_allowed():
                log.append({"shard": shard, "stamp": stamp, "bad": bad})
        verdict.bad += [(name, why) for name, why in bad]
        verdict.samples += len(held)
        verdict.size += sum(row["size"] for row in held.values())
    with _read_only_allowed():
        log.remove()
    return verdict


@contextmanager
def _read_only_allowed() -> Iterator[None]:
    """Pass over the error of writing into a folder, or on a disk, that is only readable."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def _constants_findings(shards: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the file of constants, which the latents job writes beside its description of the shards."""
    if not (shards / CONTENTS).exists() and not (shards / FILE_NAME).exists():
        return
    try:
        stored_widths(shards)
    except (DamagedFileError, MissingFileError) as error:
        yield FILE_NAME, str(error)


def _index_findings(shards: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Differences between the index and its parts, which are written separately."""
    parts = [row for part in sorted(shards.glob("shard-*.parquet")) for row in read_part(part).to_pylist()]
    if rows != parts:
        yield INDEX, "differs from its parts, shard-*.parquet; write the shards again"
    counts = Counter(row["clip_id"] for row in rows)
    yield from ((name, f"is there {count} times") for name, count in counts.items() if count > 1)


def shard_stamp(path: Path, held: dict[int, dict[str, Any]]) -> str:
    """A stamp that changes with the file of a shard and with the index of its samples."""
    about = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else ()
    return fingerprint([about, [row["checksum"] for row in held.values()]])


def _shard_findings(path: Path, held: dict[int, dict[str, Any]], reader: ShardReader) -> Iterator[tuple[str, str]]:
    """Findings of a shard: every byte must belong to a sample (`held`, by row number) or to the end mark."""
    if not path.exists():
        yield path.name, "is missing"
        return
    end = 0
    with open(path, "rb") as file:
        for number, row in held.items():
            if row["offset"] != end:
                yield row["clip_id"], f"begins at byte {row['offset']}, the one before ends at {end}"
            end = row["offset"] + row["size"]
            if end > path.stat().st_size:
                yield row["clip_id"], f"ends at byte {end}, {path.name} at {path.stat().st_size}"
                continue
            file.seek(row["offset"])
            if why := _sample_finding(file.read(row["size"]), row, reader, number):
                yield row["clip_id"], why
        file.seek(end)
        if file.read() != TAR_END:
            yield path.name, f"has something else than the mark of its end from byte {end} on"


def _sample_finding(data: bytes, row: dict[str, Any], reader: ShardReader, number: int) -> str:
    """What is wrong with a sample, by plain tar and safetensors readers, by ours, and by its SHA-256."""
    try:
        tensors, meta = reader.sample(number)
        members = _members(data)
        plain = safetensors.numpy.load(members[row["clip_id"] + TENSORS])
    except (ShardError, OSError, SafetensorError, tarfile.TarError) as error:
        return str(error)
    except KeyError as error:
        return f"has no member {error}"
    digest = hashlib.sha256(members[row["clip_id"] + TENSORS]).hexdigest()
    if meta.get("sha256", digest) != digest:
        return f"has the SHA-256 {digest[:12]}, had {meta['sha256'][:12]} when it was encoded"
    fill = -len(members[row["clip_id"] + TENSORS]) % BLOCKSIZE
    if any(data[len(data) - fill :]):
        return "has something else than zeros after its tensors"
    used = sum(BLOCKSIZE + len(member) + -len(member) % BLOCKSIZE for member in members.values())
    if set(members) != {row["clip_id"] + META, row["clip_id"] + TENSORS} or used != len(data):
        return f"holds {', '.join(members)} in {used} of {len(data)} bytes"
    shape = (row["latent_frames"], row["latent_height"], row["latent_width"])
    if tensors["latents"].shape[1:] != shape or len(tensors["text"]) != row["text_tokens"]:
        found = (tensors["latents"].shape[1:], len(tensors["text"]))
        return f"has latents {found[0]} and {found[1]} text tokens, the index says {shape} and {row['text_tokens']}"
    broken = [name for name, array in plain.items() if not np.isfinite(array).all()]
    return f"is not finite in {', '.join(broken)}" if broken else ""


def _members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        refuse_odd_members(tar, len(data))
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}
