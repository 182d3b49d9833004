"""START HERE. Latents job: encodes each kept clip once, on any number of workers, and packs the results into shards.

Workers write one file per clip below `cache/latents/`; the shards are packed from these files in the order of clip_id,
so their bytes do not depend on the distribution of work. A killed job resumes at the next clip.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.hashes import HASHES
from common.ledger.store import Ledger, Outcome
from common.media.audio import read_audio
from common.media.video import read_video
from common.progress import progress
from common.runs import RunFolder, atomic_write, fingerprint, read_json, write_json
from common.shards.index import INDEX, absent_tars, read_index
from common.shards.sample import pack_tensors, read_tensors, write_parts
from common.shards.store import ShardWriter
from latents.bill import write_bill
from latents.config import AudioKind, LatentsConfig
from latents.constants import CONTENTS, cached, clips_digest, write_constants
from latents.encode import (
    Encoders,
    encode_clip,
    encoder_hashes,
    fit_frames,
    load_encoders,
    make_constants,
)
from omniavatar.config import LoadConfig
from omniavatar.models import resolve_device
from omniavatar.video.buckets import nearest_bucket

Clip = Mapping[str, Any]
ReadClip = Callable[[Clip], tuple[np.ndarray, np.ndarray]]
"""From a clip row (with "path") to frames (N, H, W, 3) uint8 RGB at 25 fps and wave (samples,) float32 at 16 kHz."""

VERSION = "2"
CLIP_COLUMNS = ("clip_id", "video_id", "split", "caption", "sha256")


def read_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Decode a clip file. Raises MediaError."""
    return read_video(clip["path"]), read_audio(clip["path"])


def encode_clips(
    config: LatentsConfig,
    clips: Iterable[Clip],
    models: Mapping[str, Path],
    run: RunFolder,
    executor: ExecutorConfig,
    read: ReadClip = read_clip,
) -> list[Outcome]:
    """Encode clip rows into `run.shards`; a clip that fails is a ledger row and is left out of the shards.

    Rows need CLIP_COLUMNS; sha256 is any text that identifies the content: when it changes, the clip is encoded again.
    They are held meanwhile, so of a large table give no more columns. `read` turns a row into frames and audio, so
    clips need not be files; it must be picklable. Files are `clips/<clip_id>.mp4`. Raises FileNotFoundError or
    CheckpointError for the encoders, DiskFullError.
    """
    hashes = encoder_hashes(models, run.cache / HASHES)
    stage = make_stage(config, {role: Path(models[role]) for role in hashes}, hashes, run, executor, read)
    stage.cache.mkdir(parents=True, exist_ok=True)
    units = [
        dict(clip) | {"unit": clip["clip_id"], "path": str(run.clips / f"{clip['clip_id']}.mp4")} for clip in clips
    ]
    units.sort(key=lambda unit: unit["unit"])
    # Once the shards hold these clips, their files in the cache are not needed any more.
    packed = is_packed(run.shards, contents(stage, hashes["audio_encoder"], units))
    outcomes = run_stage(replace(stage, packed=packed), units, Ledger(run.ledger), executor)
    encoded = [(unit, done) for unit, done in zip(units, outcomes, strict=True) if done.state == "kept"]
    expected = contents(stage, hashes["audio_encoder"], [unit for unit, _ in encoded])
    if not is_packed(run.shards, expected):
        pack_shards(run.shards, stage.cache, expected, encoded, config.samples_per_shard)
        write_constants(run.shards, make_constants(stage.paths, config.audio, hashes["audio_encoder"]))
        write_json(run.shards / CONTENTS, expected)  # last: it marks the folder as finished
        write_bill(run, outcomes)
    return outcomes


@dataclass(frozen=True)
class LatentsStage(Stage[dict[str, Any]]):
    """Over kept clip rows: encodes one clip into a file of `cache`; its metadata and the SHA-256 of its tensors go into
    the ledger.

    `device` is the kind of device ("cpu", "cuda"), since latents of another kind differ; `worker_device` the device
    itself. `encoders` are the weights that the tensors depend on, `paths` those of all encoders.
    """

    name = "latents"
    pool = "gpu"
    version = VERSION
    reads = ("unit", "sha256", "caption")
    buckets: tuple[tuple[int, int], ...]
    references: int
    audio: AudioKind
    device: str
    dtype: Literal["fp32", "bf16"]
    encoders: tuple[Weights, ...]
    worker_device: str = no_effect()
    threads: int = no_effect()
    paths: Mapping[str, Path] = no_effect()
    cache: Path = no_effect()
    read: ReadClip = no_effect()
    packed: bool = no_effect(default=False)
    loaded: Encoders = loaded()

    def load(self) -> None:
        """Load the encoders."""
        torch.set_num_threads(self.threads)
        place = resolve_device(LoadConfig(self.worker_device, self.dtype))
        self.hold(loaded=load_encoders(self.paths, self.references, self.audio, *place))

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Encode one clip. Raises MediaError, and ValueError for tensors that are not finite."""
        frames, wave = self.read(row)
        bucket = nearest_bucket(frames.shape[1], frames.shape[2], self.buckets)
        tensors, meta = encode_clip(self.loaded, fit_frames(frames, bucket), wave, row.get("caption") or "")
        broken = [name for name, array in tensors.items() if not np.isfinite(array).all()]
        if broken:
            raise ValueError(
                f"{', '.join(broken)} of the clip are not finite in float16; check the clip and the encoders."
            )
        parts, digest = pack_tensors(tensors), hashlib.sha256()
        for part in parts:
            digest.update(part)
        with atomic_write(cached(self.cache, row["unit"])) as path, FileIO(path, "w") as file:
            write_parts(file, parts)
        return Outcome(row["unit"], "kept", outputs=meta | {"sha256": digest.hexdigest()})

    def product_exists(self, row: dict[str, Any], outcome: Outcome) -> bool:
        """Whether the encoded clip is still in the cache, or in the shards already."""
        return self.packed or cached(self.cache, row["unit"]).exists()


def make_stage(
    config: LatentsConfig,
    paths: Mapping[str, Path],
    hashes: Mapping[str, str],
    run: RunFolder,
    executor: ExecutorConfig,
    read: ReadClip,
) -> LatentsStage:
    """The stage for this machine and executor; `hashes` are those of `encoder_hashes`."""
    device, dtype = placed(config, executor)
    stage = LatentsStage(
        buckets=config.buckets,
        references=config.references,
        audio=config.audio,
        device=device.partition(":")[0],
        dtype=dtype,
        # Stored waveforms do not depend on the audio encoder.
        encoders=tuple(
            Weights(role, paths[role], digest)
            for role, digest in hashes.items()
            if (config.audio, role) != ("waveform", "audio_encoder")
        ),
        worker_device=device,
        threads=config.threads,
        paths=paths,
        cache=run.cache,
        read=read,
    )
    # The name of the folder does not include the stage's name, so that caches of older runs are found.
    return replace(stage, cache=run.cache / "latents" / fingerprint([VERSION, stage.params, stage.models]))


def placed(config: LatentsConfig, executor: ExecutorConfig) -> tuple[str, Literal["fp32", "bf16"]]:
    """Device and precision of every worker, with "auto" resolved. Raises InputError for an absent device."""
    device = config.device
    if device == "auto" and executor.kind == "ray":
        # Ray shows a worker only the GPUs it reserved; those of this process do not matter.
        device = "cuda" if executor.gpus_per_worker else "cpu"
    if executor.kind == "ray" and device.startswith("cuda"):
        return device, "fp32" if config.dtype == "fp32" else "bf16"
    resolved, dtype = resolve_device(LoadConfig(device, config.dtype))
    return str(resolved), "bf16" if dtype == torch.bfloat16 else "fp32"


def pack_shards(
    shards: Path,
    cache: Path,
    expected: Mapping[str, Any],
    encoded: list[tuple[dict[str, Any], Outcome]],
    samples_per_shard: int,
) -> None:
    """Write the cached samples into tar shards, in the order of clip_id; `expected` describes their contents."""
    with ShardWriter(shards, samples_per_shard, fingerprint(expected)) as writer:
        for unit, outcome in progress(encoded, "shards"):
            if unit["clip_id"] in writer:
                continue
            named = {name: unit[name] for name in ("clip_id", "video_id", "split")}
            file = cached(cache, unit["unit"])
            tensors = read_tensors(np.fromfile(file, np.uint8), f"Cached {file}, which may be deleted,")
            writer.add(unit["clip_id"], tensors, outcome.outputs | named | {"stage": expected["stage"]})


def contents(stage: LatentsStage, audio_encoder: str, units: Sequence[Clip]) -> dict[str, Any]:
    """Description of a shard folder, its clips and what made them, by which a finished one is recognised."""
    return {
        "stage": stage.fingerprint,
        "models": stage.models | {"audio_encoder": audio_encoder},
        "clips": len(units),
        "digest": clips_digest(units),
    }


def is_packed(shards: Path, expected: Mapping[str, Any]) -> bool:
    """True when the shard folder holds exactly these contents, every tar in full."""
    path = shards / CONTENTS
    if not path.exists() or read_json(path) != expected or not (shards / INDEX).exists():
        return False
    return not absent_tars(shards, read_index(shards))
