"""Motion diffusion: a transformer that takes noise off motion, given what is spoken; FiLM tells it the noise level.

x0 prediction, cosine schedule, deterministic sampling (DDIM), guidance by dropped audio; after MDM (Tevet et al. 2022)
and EDGE (Tseng et al. 2022). Legend: B clips, T frames, C channels of motion (standardised), D audio features, W width,
tau diffusion time in 0..1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audioavatar.config import GeneratorConfig
from audioavatar.driven.encoder import sinusoids
from audioavatar.driven.training import Checkpoint, TrainingSteps


class Film(nn.Module):
    """h + (1 + gamma(tau)) f + beta(tau), with gamma and beta zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, branch: Tensor, time: Tensor) -> Tensor:
        """`hidden` and the output `branch` of a sublayer (B, T, W); `time` (B, W) is the embedded tau."""
        gamma, beta = self.linear(time)[:, None].chunk(2, dim=-1)
        return hidden + (1 + gamma) * branch + beta


class Block(nn.Module):
    """Self-attention and feed-forward, each normalised before and modulated after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.film_1, self.film_2 = Film(width), Film(width)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """(B, T, W) and the embedded tau (B, W) -> (B, T, W)."""
        h = self.norm_1(hidden)
        hidden = self.film_1(hidden, self.attention(h, h, h, need_weights=False)[0], time)
        return self.film_2(hidden, self.feed(self.norm_2(hidden)), time)


class MotionTransformer(nn.Module):
    """F(X_tau, A, tau) = X_0: noisy motion and audio are concatenated frame by frame.

    `mean` and `deviation` standardise motion, `audio_mean` and `audio_deviation` the features; they travel with the
    weights. Audio is seen through a short convolution, so that a frame knows what it is about to say.
    """

    def __init__(self, features: int, channels: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.audio_mean: Tensor
        self.audio_deviation: Tensor
        for name, size in (("", channels), ("audio_", features)):
            self.register_buffer(f"{name}mean", torch.zeros(size))
            self.register_buffer(f"{name}deviation", torch.ones(size))
        self.listener = nn.Sequential(
            nn.Conv1d(features, width, 1), nn.GELU(), nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"),
            nn.GELU(), nn.Conv1d(width, width, 5, padding=2, padding_mode="replicate"),
        )  # fmt: skip
        self.silence = nn.Parameter(torch.zeros(width))
        self.entry = nn.Linear(channels + width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.exit = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
        self.width, self.heads = width, heads

    def encode(self, audio: Tensor) -> Tensor:
        """Audio features (B, T, D) -> (B, T, W), once per clip."""
        rows = (audio - self.audio_mean) / self.audio_deviation
        return self.listener(rows.transpose(1, 2)).transpose(1, 2)

    def forward(self, noisy: Tensor, audio: Tensor, tau: Tensor) -> Tensor:
        """Standardised noisy motion (B, T, C), encoded audio (B, T, W), tau (B,) -> clean motion (B, T, C)."""
        hidden = self.entry(torch.cat([noisy, audio], dim=-1))
        position = torch.arange(noisy.shape[1], device=noisy.device)
        hidden = hidden + sinusoids(position / noisy.shape[1], self.width)
        time = self.time(sinusoids(tau, self.width))
        for block in self.blocks:
            hidden = block(hidden, time)
        return self.exit(hidden)


def kept_signal(tau: Tensor) -> Tensor:
    """alpha-bar of the cosine schedule (Nichol and Dhariwal 2021): 1 at tau 0, 0 at tau 1."""
    return ((tau + 0.008) / 1.008 * math.pi / 2).cos().square().clamp(1e-5, 1)


def fit_generator(
    features: Sequence[Tensor],
    motion: Sequence[Tensor],
    config: GeneratorConfig = GeneratorConfig(),
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> MotionTransformer:
    """Train on clips of features (T, D) and motion (T, C) of one length: L_simple with a term of velocities."""
    audio, clean = torch.stack(list(features)), torch.stack(list(motion))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MotionTransformer(audio.shape[-1], clean.shape[-1], config.width, config.layers, config.heads)
        for name, values in (("", clean), ("audio_", audio)):
            getattr(net, f"{name}mean").copy_(values.flatten(0, 1).mean(0))
            getattr(net, f"{name}deviation").copy_(values.flatten(0, 1).std(0).clamp_min(1e-6))
        clean = (clean - net.mean) / net.deviation
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, total_steps=config.steps)
        steps = TrainingSteps("motion", config.steps, checkpoint, net=net, optimiser=optimiser, schedule=schedule)
        for _ in steps:
            loss = _loss(net, audio, clean, config)
            steps.report(loss=loss)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def _loss(net: MotionTransformer, audio: Tensor, clean: Tensor, config: GeneratorConfig) -> Tensor:
    """L_simple of one random window of every clip, at one random tau each."""
    clips, frames, _ = clean.shape
    length = min(config.window, frames)
    start = torch.randint(0, frames - length + 1, (clips,))
    index = (start[:, None] + torch.arange(length))[..., None]
    clean = clean.gather(1, index.expand(-1, -1, clean.shape[-1]))
    audio = audio.gather(1, index.expand(-1, -1, audio.shape[-1]))
    encoded = net.encode(audio + config.noise * net.audio_deviation * torch.randn_like(audio))
    dropped = torch.rand(clips, 1, 1) < config.audio_drop
    encoded = torch.where(dropped, net.silence, encoded)
    tau = torch.rand(clips)
    kept = kept_signal(tau)[:, None, None]
    predicted = net(kept.sqrt() * clean + (1 - kept).sqrt() * torch.randn_like(clean), encoded, tau)
    velocity = (predicted.diff(dim=1) - clean.diff(dim=1)).square().mean()
    return (predicted - clean).square().mean() + config.velocity * velocity


@torch.no_grad()
def sample_motion(net: MotionTransformer, features: Tensor, config: GeneratorConfig, seed: int = 0) -> Tensor:
    """Audio features (T, D) of any length -> motion (T, C).

    Windows overlap; the frames a window shares with the one before are kept from it at every step. The noise of a frame
    follows from the seed and its number, so that a longer clip begins as a shorter one does.
    """
    frames, channels = len(features), len(net.mean)
    noise = torch.stack([frame_noise(seed, t, channels) for t in range(frames)])
    motion, done = torch.zeros(frames, channels), 0
    while done < frames:
        start = max(0, done - config.overlap)
        stop = min(frames, start + config.window)
        window = slice(start, stop)
        prefix = motion[start:done]
        motion[window] = denoise(net, features[window], noise[window], prefix, config)
        done = stop
    return motion * net.deviation + net.mean


@torch.no_grad()
def continue_motion(
    net: MotionTransformer, features: Tensor, before: Tensor, first: int, config: GeneratorConfig, seed: int = 0
) -> Tensor:
    """One window of motion (T, C) from its features (T, D): it begins with `before` (P, C), and its first frame has
    the number `first` among all that the seed gives noise for."""
    noise = torch.stack([frame_noise(seed, first + t, len(net.mean)) for t in range(len(features))])
    motion = denoise(net, features, noise, (before - net.mean) / net.deviation, config) * net.deviation + net.mean
    return torch.cat([before, motion[len(before) :]])


def frame_noise(seed: int, frame: int, channels: int) -> Tensor:
    """The noise (C,) that a frame is made from."""
    return torch.randn(channels, generator=torch.Generator().manual_seed(seed * 1_000_003 + frame))


@torch.no_grad()
def denoise(net: MotionTransformer, features: Tensor, noise: Tensor, prefix: Tensor, config: GeneratorConfig) -> Tensor:
    """One window: features (T, D), noise (T, C), its first frames as they are to stay (P, C) -> motion (T, C)."""
    encoded = net.encode(features[None])
    both = torch.cat([encoded, net.silence.expand_as(encoded)])
    times = torch.linspace(1, 0, config.sampling_steps + 1)
    current, fixed = noise.clone(), len(prefix)
    for tau, following in zip(times[:-1], times[1:], strict=True):
        kept, next_kept = kept_signal(tau), kept_signal(following)
        current[:fixed] = kept.sqrt() * prefix + (1 - kept).sqrt() * noise[:fixed]
        if config.guidance == 1:
            clean = net(current[None], encoded, tau[None])[0]
        else:
            spoken, silent = net(current.expand(2, -1, -1), both, tau.expand(2))
            clean = silent + config.guidance * (spoken - silent)
        clean[:fixed] = prefix
        error = (current - kept.sqrt() * clean) / (1 - kept).sqrt().clamp_min(1e-4)
        current = next_kept.sqrt() * clean + (1 - next_kept).sqrt() * error
    return clean
