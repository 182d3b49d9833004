"""Training of every model of the small world: judges, encoders, base transformer and adapter.

One long evening on two cores: judges, text and audio encoder two at a time -> VAE on both cores -> latents of drawn
clips -> base text-to-video -> audio adapter. Each part goes on where it was killed; a finished one is left alone.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.runs import RunFolder
from latents.config import LatentsConfig
from latents.job import encode_clips
from miniature.train.text_encoder import TEXT_DIM
from miniature.weights import WEIGHT_PATHS
from pipelines.config import DrawnConfig
from pipelines.drawn import draw_kept_clips
from training.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from training.launch.local import launch
from training.omniavatar.export import COMFYUI, DIFFUSERS

logger = logging.getLogger(__name__)

BUCKETS = ((64, 64), (96, 96))
SHIFT = 1.5  # of the noise schedule: latents this small need less noise than Wan's

# (module, folder or file below the weights, minutes of one core)
SMALL_ROLES = (
    ("miniature.train.syncnet", "syncnet/syncnet_v2.model", 6.0),
    ("miniature.train.audio_encoder", "wav2vec2", 3.0),
    ("miniature.train.text_encoder", "wan", 3.0),
    ("miniature.train.faces", "insightface", 8.0),
    ("miniature.train.qalign", "one-align", 15.0),
    ("miniature.train.feature_nets", "", 12.0),
)
TRANSFORMER = {
    "patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 16, "out_channels": 16,
    "text_dim": TEXT_DIM, "freq_dim": 64, "ffn_dim": 384, "num_layers": 6, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 128,
}  # fmt: skip


def train_everything(out: Path, minutes_scale: float = 1.0) -> None:
    """Train all roles into `out` (the layout of miniature.weights), reading nothing but this code.

    `minutes_scale` shortens every training alike; 1.0 takes about two hours on two cores. Raises
    CalledProcessError for a training that ended badly.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda role: _train_role(out, role, minutes_scale, ranks=1), SMALL_ROLES))
    _train_role(out, ("miniature.train.vae", "wan/vae", 42.0), minutes_scale, ranks=2)
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "wan" / "scheduler")
    drawn = DrawnConfig(round(4000 * minutes_scale) + 32, 64)
    encode_drawn(RunFolder(out / "work"), out, drawn)
    train_base(out, 25 * minutes_scale)
    train_adapter(out, 35 * minutes_scale)


def train_base(out: Path, minutes: float, ranks: int = 2) -> None:
    """The text-to-video transformer from random weights, into `out/wan/transformer`."""
    start = out / "work" / "random_transformer"
    WanTransformer3DModel(**TRANSFORMER).save_config(start)
    run = RunFolder(out / "work" / "base")
    model = ModelConfig(base=start, variant="base", init="random")
    launch(run, _config(out, model, lr=2e-3, minutes=minutes, ranks=ranks), ranks)
    shutil.copytree(run.checkpoints / "base", out / WEIGHT_PATHS["transformer"], dirs_exist_ok=True)


def train_adapter(out: Path, minutes: float, ranks: int = 2) -> None:
    """The audio adapter on that base: LoRA of rank 32 and alpha 16 (the paper's 2:1), into `out/omniavatar`."""
    run = RunFolder(out / "work" / "adapter")
    model = ModelConfig(base=out / WEIGHT_PATHS["transformer"], variant="lora", lora_rank=32, lora_alpha=16)
    launch(run, _config(out, model, lr=3e-3, minutes=minutes, ranks=ranks), ranks)
    official = shutil.ignore_patterns(DIFFUSERS, COMFYUI)
    shutil.copytree(run.checkpoints / "adapter", out / WEIGHT_PATHS["adapter"], ignore=official, dirs_exist_ok=True)


def _config(out: Path, model: ModelConfig, lr: float, minutes: float, ranks: int) -> TrainConfig:
    return TrainConfig(
        shards=out / "work" / "shards",
        model=model,
        data=DataConfig(batch=16, micro_batches=ranks),
        objective=ObjectiveConfig(shift=SHIFT, sigma="uniform", weighting="uniform"),
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.98), warmup=100, decay=0.4),
        # Nothing to shard at this size: ZeRO-3 would cost more than the model itself.
        engine=EngineConfig(stage=0, autocast="bf16"),
        validation=ValidationConfig(every=200),
        checkpoint=CheckpointConfig(every_seconds=60, export_dtype="bf16"),
        steps=0,
        minutes=minutes,
    )


def encode_drawn(run: RunFolder, weights: Path, drawn: DrawnConfig) -> None:
    """Shards of drawn clips in `run.shards`, on all cores."""
    draw_kept_clips(drawn, run, ExecutorConfig())
    models = {role: weights / path for role, path in WEIGHT_PATHS.items()}
    config = LatentsConfig(buckets=BUCKETS, samples_per_shard=512)
    encode_clips(config, read_clips(run.clips_parquet), models, run, ExecutorConfig())


def _train_role(out: Path, role: tuple[str, str, float], minutes_scale: float, ranks: int) -> None:
    module, path, minutes = role
    done = out / "work" / f"{module}.done"
    if done.exists():
        return
    command: Sequence[str] = ["-m", module, "--out", str(out / path), "--minutes", str(minutes * minutes_scale)]
    if ranks > 1:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *command]
    logger.info("%s: %.1f minutes", module, minutes * minutes_scale)
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
