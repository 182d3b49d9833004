"""AdamW with its parameter groups, and the learning-rate schedule."""

import torch
from torch import nn

from training.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters of a model that is not sharded yet."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate of step `step` (from 0) at `progress` (0 to 1) of the run."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    remaining = max(0.0, 1.0 - progress)
    return config.lr * warm * (min(1.0, remaining / config.decay) if config.decay else 1.0)
