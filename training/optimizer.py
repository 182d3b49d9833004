"""Which weights decay, and the learning rate of a step."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, then constant, then (over the last part of the run) linear to zero."""

    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01  # not on tensors of one dimension
    warmup: int = 100  # steps
    decay: float = 0.0  # last fraction of the run over which the rate falls to zero; 0 = constant

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; expected a fraction of the run between 0 and 1")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters of a model that is not sharded yet."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas)


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Rate of step `step` (from 0), when `progress` (0 to 1) of the run lies behind."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    left = max(0.0, 1.0 - progress)
    return config.lr * warm * (min(1.0, left / config.decay) if config.decay else 1.0)
