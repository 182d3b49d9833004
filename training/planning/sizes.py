"""Sizes of a training, model and clips, without reading weights or opening a shard."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runs import read_json
from common.shards.index import read_index
from latents.constants import stored_widths
from omniavatar.planning.network import HALF, Network, network_of
from omniavatar.planning.sizes import PUBLISHED
from training.config import LORA_RANK, ModelConfig
from training.data.buckets import Bucket

PAPER_CLIPS, PAPER_SIZE = 774_207, Bucket(60, 104, 39)  # 6.14 s at 25 fps, 480 x 832
TEXT_LENGTH, AUDIO_DIM = 512, 10_752
CAPTION = 110  # tokens of a caption of average length
REFERENCES = 4
AUDIO_STATE, STORED_STATES = 768, 13  # of fourteen audio states two are equal; one of the two is not stored


@dataclass(frozen=True)
class Clips:
    """The clips of a training: counts by whole size, and the bytes of their shards."""

    sizes: dict[Bucket, int]
    shard_bytes: int
    text: int  # tokens of a padded caption
    audio_dim: int
    source: str


def clips_to_train(shards: Path | None, split: str) -> Clips:
    """The clips of `split` in the index of `shards`; the paper's where there is no index.

    Raises InputError when the index has none of the split.
    """
    if shards is None or not (shards / "index.parquet").exists():
        stored = PAPER_CLIPS * sum(sample_bytes(PAPER_SIZE).values())
        return Clips({PAPER_SIZE: PAPER_CLIPS}, stored, TEXT_LENGTH, AUDIO_DIM, "the paper's, all of the mean 6.14 s")
    table = read_index(shards)
    splits, *sides = (table[name].to_pylist() for name in ("split", "latent_height", "latent_width", "latent_frames"))
    sizes = Counter(
        Bucket(*size) for named, size in zip(splits, zip(*sides, strict=True), strict=True) if named == split
    )
    if not sizes:
        raise InputError(f"{shards} holds no sample of split '{split}'; check data.split, run the latents job")
    (text_length, audio_dim), stored = stored_widths(shards), sum(table["size"].to_pylist())
    return Clips(dict(sizes), stored, text_length, audio_dim, f"split '{split}' of {shards}")


def sample_bytes(bucket: Bucket) -> dict[str, int]:
    """Bytes of the stored tensors of one clip, with the published encoders."""
    frame = HALF * 16 * bucket.height * bucket.width
    return {
        "latents": frame * bucket.frames,
        "references": frame * REFERENCES,
        "text": HALF * CAPTION * 4096,
        "audio": HALF * (4 * bucket.frames - 3) * AUDIO_STATE * STORED_STATES,
    }


def network_to_train(model: ModelConfig, audio_dim: int) -> Network:
    """The network of `model`: from the config.json of its base, else as published for the name of the base's folder.

    Raises InputError when the base is neither there nor known by name.
    """
    file = model.base / "config.json"
    if not file.exists() and model.base.name not in PUBLISHED:
        raise InputError(
            f"{model.base} holds no config.json and is none of {', '.join(PUBLISHED)}; fetch the base, or name a "
            "folder so to plan with the published sizes"
        )
    sizes: dict[str, Any] = read_json(file) if file.exists() else dict(PUBLISHED[model.base.name])
    if model.plain:
        return network_of(sizes, "base", 0, "multi", 0)
    rank, entry = model.lora_rank or LORA_RANK, model.audio_entry
    # An adapter that was not fetched yet is planned as the new one of the recipe.
    if model.adapter is not None and (model.adapter / "config.json").exists():
        from training.omniavatar.export import adapter_config  # imports torch

        adapter = adapter_config(model)
        rank, entry = adapter.rank, adapter.audio_entry
    return network_of(sizes, model.variant, rank, entry, audio_dim)
