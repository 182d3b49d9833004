"""Random shards and a random base model, small enough for many short trainings."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.runs import RunFolder
from common.shards.store import ShardWriter
from latents.constants import Constants, write_constants
from omniavatar.model.transformer import new_base
from omniavatar.weights.checkpoints import save_base
from training.config import DataConfig, EngineConfig, ModelConfig, OptimizerConfig, TrainConfig

LAYERS, TEXT_DIM, HIDDEN = 4, 12, 6
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_DIM,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": LAYERS,
    "rope_max_seq_len": 32,
}


def write_clips(folder: Path, frames: list[int], split: str, size: tuple[int, int] = (4, 4), seed: int = 0) -> None:
    """One sample per entry of `frames` (latent frames); samples of two splits live in two folders."""
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, samples_per_shard=8) as writer:
        for number, length in enumerate(frames):
            latents = rng.standard_normal((16, length, *size)).astype(np.float16)
            tensors = {
                "latents": latents,
                "references": np.moveaxis(latents[:, :3], 1, 0).copy(),
                "text": rng.standard_normal((3, TEXT_DIM)).astype(np.float16),
                "audio": rng.standard_normal((4 * length - 3, 3 * HIDDEN)).astype(np.float16),
            }
            where = "test" if number % 4 == 3 and split == "both" else "train"
            writer.add(f"clip{number:03d}", tensors, {"video_id": f"video{number}", "split": where})
    write_constants(folder, Constants(torch.ones(1, TEXT_DIM), text_length=6, audio_dim=4 * HIDDEN))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 clips of 5 latent frames, every fourth held out."""
    folder = tmp_path_factory.mktemp("shards")
    write_clips(folder, [5] * 16, split="both")
    return folder


@pytest.fixture(scope="session")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 training clips of three lengths."""
    folder = tmp_path_factory.mktemp("mixed")
    write_clips(folder, [3, 5, 9] * 7 + [5, 5], split="train")
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    save_base(new_base(DIT), folder)
    return folder


@pytest.fixture
def config(shards: Path, base_folder: Path) -> TrainConfig:
    """A LoRA training of four steps, two micro-batches of two samples each, at stage 0."""
    return TrainConfig(
        shards=shards,
        model=ModelConfig(base=base_folder, lora_rank=4, lora_alpha=2.0),
        data=DataConfig(batch=2, micro_batches=2),
        optimizer=OptimizerConfig(lr=1e-2, warmup=2),
        engine=EngineConfig(stage=0),
        steps=4,
        seed=5,
    )


@pytest.fixture
def at_stage(config: TrainConfig) -> Callable[[int], TrainConfig]:
    """The same training at another ZeRO stage."""
    return lambda stage: replace(config, engine=replace(config.engine, stage=stage))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A training in this process must not leave its rank behind for the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
