"""Refinement of face and hands: a transformer over sequence time that corrects what the generator made.

It is conditioned on where in the sequence a frame is and never on a noise level. Legend: B clips, T frames, C channels
of face and hands, O other channels (body, head), D audio features, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audioavatar.config import RefinementConfig
from audioavatar.driven.encoder import sinusoids
from audioavatar.driven.training import Checkpoint, TrainingSteps


class Refiner(nn.Module):
    """x^fh + R([x^fh ; x^body ; A], PE(t)); the residual begins at zero.

    `mean` and `deviation` standardise [x^fh ; x^body], `audio_mean` and `audio_deviation` the features.
    """

    def __init__(self, channels: int, other: int, features: int, config: RefinementConfig = RefinementConfig()) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.audio_mean: Tensor
        self.audio_deviation: Tensor
        for name, size in (("", channels + other), ("audio_", features)):
            self.register_buffer(f"{name}mean", torch.zeros(size))
            self.register_buffer(f"{name}deviation", torch.ones(size))
        self.channels, self.reach, self.span = channels, config.reach, config.window
        self._sizes = {"channels": channels, "other": other, "features": features, "config": asdict(config)}
        width = config.width
        self.entry = nn.Linear(channels + other + features, width)
        layer = partial(nn.TransformerEncoderLayer, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList([layer(width, config.heads, 2 * width) for _ in range(config.layers)])
        self.norm, self.exit = nn.LayerNorm(width), nn.Linear(width, channels)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def sizes(self) -> dict[str, Any]:
        """What `Refiner(...)` takes."""
        return dict(self._sizes)

    @classmethod
    def restored(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> "Refiner":
        """A trained one, of its `sizes()` and its weights."""
        net = cls(**{**sizes, "config": RefinementConfig(**sizes["config"])})
        net.load_state_dict(state)
        return net.eval().requires_grad_(False)

    def forward(self, motion: Tensor, audio: Tensor, time: Tensor) -> Tensor:
        """Motion (B, T, C + O), audio (B, T, D) and the frames' numbers in the sequence (T,) -> (B, T, C + O), of which
        the last O are as they came."""
        rows = (motion - self.mean) / self.deviation
        features = (audio - self.audio_mean) / self.audio_deviation
        hidden = self.entry(torch.cat([rows, features], dim=-1))
        hidden = hidden + sinusoids(time / self.span, hidden.shape[-1])
        frames = torch.arange(motion.shape[1], device=motion.device)
        far = (frames[:, None] - frames).abs() > self.reach
        for block in self.blocks:
            hidden = block(hidden, src_mask=far)
        change = self.exit(self.norm(hidden)) * self.deviation[: self.channels]
        return torch.cat([motion[..., : self.channels] + change, motion[..., self.channels :]], dim=-1)


def fit_refiner(
    samples: Sequence[Tensor],
    audio: Sequence[Tensor],
    target: Sequence[Tensor],
    channels: int,
    config: RefinementConfig = RefinementConfig(),
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> Refiner:
    """Train on a generator's `samples` (T, C + O) of audio (T, D), towards `target` (T, C + O): L1 and velocities.

    Several samples of one clip are several entries. All have one length; the first `channels` are face and hands.
    """
    motion, features, targets = (torch.stack(list(each)) for each in (samples, audio, target))
    frames = motion.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Refiner(channels, motion.shape[-1] - channels, features.shape[-1], config)
        for name, values in (("", targets), ("audio_", features)):
            getattr(net, f"{name}mean").copy_(values.flatten(0, 1).mean(0))
            getattr(net, f"{name}deviation").copy_(values.flatten(0, 1).std(0).clamp_min(1e-6))
        scale = net.deviation[:channels]
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, total_steps=config.steps)
        length = min(config.window, frames)
        steps = TrainingSteps("refine", config.steps, checkpoint, net=net, optimiser=optimiser, schedule=schedule)
        for _ in steps:
            start = int(torch.randint(0, frames - length + 1, ()))
            part = slice(start, start + length)
            noise = config.noise * net.audio_deviation * torch.randn_like(features[:, part])
            refined = net(motion[:, part], features[:, part] + noise, torch.arange(length))
            error = (refined - targets[:, part])[..., :channels] / scale
            loss = error.abs().mean() + error.diff(dim=1).abs().mean()
            steps.report(loss=loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def refine(net: Refiner, motion: Tensor, audio: Tensor, relative: bool = True) -> Tensor:
    """Motion (T, C + O) of any length, in windows of the length that was trained.

    `relative`: a frame's time counts from its window's first frame; else from the sequence's, which training has not
    seen beyond one window.
    """
    parts = []
    for start in range(0, len(motion), net.span):
        part = slice(start, start + net.span)
        time = torch.arange(len(motion[part])) + (0 if relative else start)
        parts.append(net(motion[None, part], audio[None, part], time)[0])
    return torch.cat(parts)
