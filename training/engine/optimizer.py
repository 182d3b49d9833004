"""AdamW with its parameter groups and its kernel, and the learning-rate schedule."""

import torch
from torch import nn

from training.config import Fused, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, fused: Fused = "auto") -> torch.optim.AdamW:
    """AdamW over the trained parameters of a model that is not sharded yet; `fused` as in EngineConfig."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    # torch's own, not DeepSpeed's FusedAdam and CPUAdam: they are compiled on the machine when first used.
    return torch.optim.AdamW(kept, lr=config.lr, betas=config.betas, fused=is_fused(fused) or None)


def is_fused(setting: Fused) -> bool:
    """Whether AdamW runs as one kernel. On a CPU it is a quarter of the work, but its roundings are others."""
    return torch.cuda.is_available() if setting == "auto" else setting == "on"


def set_kernel(optimizer: torch.optim.Optimizer, fused: Fused) -> None:
    """Undo that a checkpoint brings the kernel of the run that saved it, and steps counted where that kernel wants
    them."""
    for group in optimizer.param_groups:
        group["fused"] = is_fused(fused) or None
    for parameter, moments in optimizer.state.items():
        if "step" in moments:
            moments["step"] = torch.as_tensor(moments["step"]).to(parameter.device if is_fused(fused) else "cpu")


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate of step `step` (from 0) at `progress` (0 to 1) of the run."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    remaining = max(0.0, 1.0 - progress)
    return config.lr * warm * (min(1.0, remaining / config.decay) if config.decay else 1.0)
