"""Temporal convolutions from audio to mouth motion: the second baseline, deterministic as the first."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audioavatar.config import TcnConfig


class Tcn(nn.Module):
    """Convolutions 1-5-5-1 over time: each frame is predicted from four before to four after it.

    `mean` and `deviation` (D,) standardise the features and travel with the weights.
    """

    def __init__(self, features: int, components: int, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.width, self.components = width, components
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Conv1d(features, width, 1), nn.GELU(),
            nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"), nn.GELU(),
            nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"), nn.GELU(),
            nn.Conv1d(width, components, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., T, D) -> coefficients (..., T, K)."""
        rows = (features - self.mean) / self.deviation
        return self.layers(rows.transpose(-1, -2)).transpose(-1, -2)


def fit_tcn(
    features: Sequence[Tensor], coefficients: Sequence[Tensor], config: TcnConfig = TcnConfig(), seed: int = 0
) -> Tcn:
    """Train on clips of features (T, D) and coefficients (T, K) of one length, on positions and velocities."""
    audio, motion = torch.stack(list(features)), torch.stack(list(coefficients))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Tcn(audio.shape[-1], motion.shape[-1], config.width)
        net.mean.copy_(audio.flatten(0, 1).mean(0))
        net.deviation.copy_(audio.flatten(0, 1).std(0).clamp_min(1e-6))
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, total_steps=config.steps)
        for _ in range(config.steps):
            noisy = audio + config.noise * net.deviation * torch.randn_like(audio)
            predicted = net(noisy)
            loss = (predicted - motion).square().mean()
            loss = loss + (predicted.diff(dim=1) - motion.diff(dim=1)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)
