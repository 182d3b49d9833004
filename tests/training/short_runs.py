"""A few steps of training, in this process without an engine or by several ranks with one, and what they end with."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.process.imports import large_imports

with large_imports():
    from training.engine.zero import Engine, join_group, leave_group
    from training.train import train

import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.recipe import dump_recipe, load_recipe
from common.runs import RunFolder
from omniavatar.model.transformer import AvatarTransformer, build_condition
from training.config import EngineConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from training.engine.optimizer import build_optimizer
from training.omniavatar.model import build_model
from training.omniavatar.objective import Batch, sample_losses

LR, AUDIO_DIM, MICRO_BATCHES = 1e-2, 24, 2
PATIENCE = 150.0  # seconds that a rank waits for the other
TRAINING = "train.yaml"


@dataclass(frozen=True)
class ShortConfig:
    """What `steps` steps of two micro-batches are trained with."""

    model: ModelConfig
    engine: EngineConfig
    steps: int = 2
    seed: int = 5


@dataclass(frozen=True)
class ShortRun:
    """Loss and gradient norm of each step, and the trained weights after the last."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def batches(config: ShortConfig) -> list[list[Batch]]:
    """The micro-batches of each step: two samples of 45 and of 27 tokens, which no two ranks can share evenly."""
    rng = torch.Generator().manual_seed(config.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    def batch(frames: int) -> Batch:
        condition = build_condition(random(2, 16, 1, 6, 6), frames, torch.tensor([1, 2]))
        sizes = {"clean": (2, 16, frames, 6, 6), "noise": (2, 16, frames, 6, 6), "text": (2, 6, 12)}
        tensors = {name: random(*size) for name, size in sizes.items()}
        sigma, prefix = torch.rand(2, generator=rng), torch.tensor([1, 2])
        audio = random(2, 4 * frames - 3, AUDIO_DIM)
        return Batch(**tensors, sigma=sigma, prefix=prefix, condition=condition, audio=audio)

    return [[batch(frames) for frames in (5, 3)] for _ in range(config.steps)]


def build(config: ShortConfig) -> tuple[AvatarTransformer, torch.optim.AdamW]:
    """Model and optimizer as the trainer makes them."""
    model = build_model(config.model, AUDIO_DIM, config.engine.frozen_dtype, config.seed, config.engine)
    return model, build_optimizer(model, OptimizerConfig(), config.engine.fused_optimizer)


def by_plain_torch(config: ShortConfig) -> ShortRun:
    """The reference: a loop without any engine."""
    model, optimizer = build(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for step in batches(config):
        total = torch.stack([sample_losses(model, batch, ObjectiveConfig()).mean() for batch in step]).mean()
        optimizer.zero_grad()
        total.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, config.engine.clip).item())
        for group in optimizer.param_groups:
            group["lr"] = LR
        optimizer.step()
        losses.append(total.item())
    return ShortRun(
        losses, norms, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    )


def by_engine(config: ShortConfig) -> ShortRun:
    """All ranks together, each with its share of the micro-batches."""
    engine = Engine(*build(config), MICRO_BATCHES, config.engine)
    losses, norms = [], []
    for step in batches(config):
        values = []
        for batch in step[engine.data_rank :: engine.data_world]:
            loss = sample_losses(engine, batch, ObjectiveConfig()).mean()
            engine.backward(loss)
            result = engine.step(LR)
            values.append(loss.item())
        total, count = engine.total(sum(values), len(values))
        losses.append(total / count)
        norms.append(result.grad_norm)
    return ShortRun(losses, norms, dict(engine.trained_tensors()))


def by_ranks(folder: Path, configs: Mapping[str, ShortConfig], ranks: int = 2) -> dict[str, ShortRun]:
    """Every configuration in turn, by the same `ranks` processes."""
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(dump_recipe(config))
    _fork(ranks, folder, *configs)
    assert float((folder / "timeout").read_text()) == PATIENCE
    return {
        name: ShortRun(**json.loads((folder / f"{name}.json").read_text()), weights=load_file(folder / f"{name}.st"))
        for name in configs
    }


def train_by_ranks(run: RunFolder, config: TrainConfig, ranks: int = 2) -> None:
    """`training.train` by several ranks, without a launcher."""
    (run.root / TRAINING).write_text(dump_recipe(config))
    _fork(ranks, run.root)


def _fork(ranks: int, folder: Path, *names: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(folder), str(ranks), *names]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr


def _rank(rank: int, folder: Path, ranks: int, port: int, names: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not names:
        train(RunFolder(folder), load_recipe(folder / TRAINING, TrainConfig))
        return leave_group()
    join_group(threads=1, timeout=PATIENCE)
    for name in names:
        run = by_engine(load_recipe(folder / f"{name}.yaml", ShortConfig))
        if rank == 0:
            save_file(run.weights, folder / f"{name}.st")
            (folder / f"{name}.json").write_text(json.dumps({"losses": run.losses, "norms": run.norms}))
    waits = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
    (folder / "timeout").write_text(str(waits.total_seconds()))
    leave_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    # Forked, not spawned: what takes the time is the imports, and one process does them for all.
    arguments = (Path(sys.argv[1]), int(sys.argv[2]), _free_port(), sys.argv[3:])
    torch.multiprocessing.start_processes(_rank, arguments, nprocs=int(sys.argv[2]), start_method="fork")
