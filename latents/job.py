"""Kept clips -> shards: each clip is encoded once, by any number of workers, then packed in the order of the names.

Workers write one file per clip below `cache/latents/`; the shards are packed from these files, so that their bytes do
not depend on who encoded what when. A killed job goes on at the next clip.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from common.executors import ExecutorConfig, Stage, run_stage
from common.ledger import Ledger, Outcome
from common.media import read_audio, read_video
from common.progress import progress
from common.runs import RunFolder, atomic_write, fingerprint, read_json, write_json
from common.shards import ShardWriter
from latents.constants import write_constants
from latents.encode import Encoders, encode_clip, encoder_hashes, fit_frames, load_encoders, nearest_bucket

logger = logging.getLogger(__name__)

Clip = Mapping[str, Any]
ReadClip = Callable[[Clip], tuple[np.ndarray, np.ndarray]]
"""From a clip row (with "path") to frames (N, H, W, 3) uint8 RGB at 25 fps and wave (samples,) float32 at 16 kHz."""

VERSION = "1"
CONTENTS = "contents.json"


@dataclass(frozen=True)
class LatentsConfig:
    """Buckets are (height, width) in pixels, multiples of 16; the defaults are the "480p" set of the paper's system."""

    buckets: tuple[tuple[int, int], ...] = ((400, 720), (720, 720), (720, 400))
    references: int = 4
    samples_per_shard: int = 128
    threads: int = 1

    def __post_init__(self) -> None:
        for bucket in self.buckets:
            if bucket[0] % 16 or bucket[1] % 16:
                raise ValueError(f"bucket {bucket} is not a multiple of 16 in both directions, which the model needs")


def read_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Decode a clip file. Raises MediaError."""
    return read_video(clip["path"]), read_audio(clip["path"])


def encode_clips(
    config: LatentsConfig,
    clips: Sequence[Clip],
    models: Mapping[str, Path],
    run: RunFolder,
    executor: ExecutorConfig,
    read: ReadClip = read_clip,
) -> list[Outcome]:
    """Encode clip rows into `run.shards`; a clip that fails is a ledger row and is left out of the shards.

    Rows need clip_id, video_id, split, caption, and sha256 (any text that names the content: another one means encode
    again). `read` turns a row into picture and sound, so clips need not be files; it must be picklable. Files are
    `clips/<clip_id>.mp4`. Raises FileNotFoundError or CheckpointError for the encoders, DiskFullError.
    """
    hashes = encoder_hashes(models)
    params = {"buckets": config.buckets, "references": config.references}
    digest = fingerprint([VERSION, params, hashes])
    cache = run.cache / "latents" / digest
    cache.mkdir(parents=True, exist_ok=True)
    paths = {role: Path(models[role]) for role in hashes}
    make = partial(make_worker, paths, config, str(cache), read)
    stage = Stage("latents", VERSION, params, hashes, make, reads=("unit", "sha256", "caption"))
    units = [
        dict(clip) | {"unit": clip["clip_id"], "path": str(run.clips / f"{clip['clip_id']}.mp4")} for clip in clips
    ]
    units.sort(key=lambda unit: unit["unit"])
    ledger = Ledger(run.ledger)
    if not is_packed(run.shards, stage, units):
        forget_lost(stage, units, ledger, cache)
    outcomes = run_stage(stage, units, ledger, executor)
    encoded = [(unit, done) for unit, done in zip(units, outcomes, strict=True) if done.state == "kept"]
    if not is_packed(run.shards, stage, [unit for unit, _ in encoded]):
        pack_shards(run.shards, cache, stage, encoded, config.samples_per_shard)
        write_constants(run.shards, load_encoders(models).constants())
        write_json(run.shards / CONTENTS, contents(stage, [unit for unit, _ in encoded]))
    return outcomes


def make_worker(
    models: Mapping[str, Path], config: LatentsConfig, cache: str, read: ReadClip
) -> Callable[[Clip], Outcome]:
    """Load the encoders; the function returned encodes one clip into a file of the cache."""
    torch.set_num_threads(config.threads)
    return partial(encode_to_cache, load_encoders(models, config.references), config, Path(cache), read)


def encode_to_cache(encoders: Encoders, config: LatentsConfig, cache: Path, read: ReadClip, clip: Clip) -> Outcome:
    """Encode one clip; its tensors go to `cache`, its metadata into the ledger."""
    frames, wave = read(clip)
    bucket = nearest_bucket(frames.shape[1], frames.shape[2], config.buckets)
    tensors, meta = encode_clip(encoders, fit_frames(frames, bucket), wave, clip.get("caption") or "")
    with atomic_write(cached(cache, clip["unit"])) as path:
        save_file(tensors, path)
    return Outcome(clip["unit"], "kept", outputs=meta)


def cached(cache: Path, clip_id: str) -> Path:
    """Where the tensors of one clip wait to be packed."""
    return cache / f"{clip_id}.safetensors"


def forget_lost(stage: Stage, units: list[dict[str, Any]], ledger: Ledger, cache: Path) -> None:
    """Mark, in place, clips the ledger knows as done but whose file is gone from the cache, to be encoded again."""
    with ledger.open(stage.name, stage.fingerprint) as log:
        known = dict(log.done())
    for unit in units:
        done = known.get((unit["unit"], stage.input_hash(unit)))
        if done and done.state == "kept" and not cached(cache, unit["unit"]).exists():
            unit["sha256"] = f"{unit['sha256']} lost {uuid4().hex}"


def pack_shards(
    shards: Path, cache: Path, stage: Stage, encoded: list[tuple[dict[str, Any], Outcome]], samples_per_shard: int
) -> None:
    """Write the cached samples into tar shards, in the order of clip_id."""
    wanted = fingerprint(contents(stage, [unit for unit, _ in encoded]))
    with ShardWriter(shards, samples_per_shard, wanted) as writer:
        for unit, outcome in progress(encoded, "shards"):
            if unit["clip_id"] in writer:
                continue
            named = {name: unit[name] for name in ("clip_id", "video_id", "split")}
            meta = outcome.outputs | named | {"stage": stage.fingerprint}
            writer.add(unit["clip_id"], load_file(cached(cache, unit["unit"])), meta)


def contents(stage: Stage, units: Sequence[Clip]) -> dict[str, Any]:
    """What a shard folder holds and what made it, to recognise a finished one."""
    return {
        "stage": stage.fingerprint,
        "models": stage.models,
        "clips": len(units),
        "digest": clips_digest(units),
    }


def clips_digest(clips: Sequence[Clip]) -> str:
    """16 hex digits that stand for clips, sorted by clip_id, and all that their samples depend on."""
    fields = ("clip_id", "video_id", "split", "caption", "sha256")
    return fingerprint([[str(clip.get(name)).partition(" lost ")[0] for name in fields] for clip in clips])


def is_packed(shards: Path, stage: Stage, units: Sequence[Clip]) -> bool:
    """True when the shard folder holds exactly these clips, encoded by this stage."""
    path = shards / CONTENTS
    return path.exists() and read_json(path) == contents(stage, units)
