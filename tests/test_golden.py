"""Numbers of the shipped models as they were when they were recorded: losses of a training, values of a latent.

Equality between two runs of today says nothing about last month. A change that should alter these numbers replaces the
files in tests/assets in a commit of its own: `python tests/test_golden.py` writes them.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from common.runs import RunFolder
from common.shards.store import ShardWriter
from latents.constants import Constants, write_constants
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.config import BASE_ROLES, LoadConfig
from omniavatar.models import ModelPaths, load_models
from omniavatar.video.chunks import FIRST_PREFIX, Chunk, ClipRequest
from omniavatar.video.scene import prepare, sample_chunk
from pipelines.recipe import read_recipe
from training.config import CheckpointConfig, TrainConfig, ValidationConfig
from training.train import train

ASSETS = Path(__file__).parent / "assets"
TOLERANCE = 1e-4  # other processors sum in another order
TEXT_DIM, AUDIO_DIM, CLIPS = 64, 240, 12


def demo_losses(folder: Path) -> list[float]:
    """The first 5 losses of the demo's training, from the shipped adapter on, over latents of noise in float32."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shards", samples_per_shard=CLIPS) as writer:
        for number in range(CLIPS):
            frames = 5 + 4 * (number % 3)
            latents = rng.standard_normal((16, frames, 8, 8)).astype(np.float16)
            tensors = {
                "latents": latents,
                "references": np.moveaxis(latents[:, :4], 1, 0).copy(),
                "text": rng.standard_normal((7, TEXT_DIM)).astype(np.float16),
                "audio": rng.standard_normal((4 * frames - 3, 4 * AUDIO_DIM // 5)).astype(np.float16),
            }
            writer.add(f"clip{number:02d}", tensors, {"video_id": f"video{number}", "split": "train"})
    write_constants(folder / "shards", Constants(torch.ones(1, TEXT_DIM), text_length=16, audio_dim=AUDIO_DIM))
    train(RunFolder(folder), _demo_training(folder))
    lines = (folder / "logs" / "train.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _demo_training(folder: Path) -> TrainConfig:
    config, weights = read_recipe("demo").train, model_paths()
    return replace(
        config,
        shards=folder / "shards",
        model=replace(config.model, base=weights["transformer"], adapter=weights["adapter"]),
        engine=replace(config.engine, stage=0, autocast="none"),  # bfloat16 products differ between processors
        validation=ValidationConfig(),
        checkpoint=CheckpointConfig(),
        steps=5,
    )


def generated_latent() -> list[float]:
    """Every 200th value of the latent (16, 4, 8, 8) of half a second by the shipped adapter, four steps."""
    weights = model_paths()
    models = load_models(
        ModelPaths(**{role: weights[role] for role in BASE_ROLES}, adapter=weights["adapter"]),
        LoadConfig(device="cpu", dtype="fp32"),
    )
    config = replace(read_recipe("demo").generate, steps=4, seed=7)
    clip = draw_clip(HELD_OUT_SEED, 0.48)
    chunk = Chunk(0, 0, 12, FIRST_PREFIX)
    with torch.inference_mode():
        scene = prepare(models, [ClipRequest(clip.frames[0], clip.audio, clip.caption)], config, chunk.audio_stop)
        latents = sample_chunk(models, scene, chunk, scene.reference, [config.seed], config)
    return latents.flatten()[::200].tolist()


@pytest.fixture
def own_environment(monkeypatch):
    """A training in this process sets its rank; it must not stay behind for the next test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


def golden(name: str) -> list[float]:
    return json.loads((ASSETS / f"{name}.json").read_text())


def test_the_demos_training_has_the_losses_it_had(own_environment, tmp_path):
    assert demo_losses(tmp_path) == pytest.approx(golden("demo_losses"), rel=TOLERANCE)


def test_a_generated_latent_has_the_values_it_had():
    wanted = golden("generated_latent")
    assert generated_latent() == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    (ASSETS / "generated_latent.json").write_text(json.dumps(generated_latent()) + "\n")
    with TemporaryDirectory() as scratch:
        (ASSETS / "demo_losses.json").write_text(json.dumps(demo_losses(Path(scratch))) + "\n")
