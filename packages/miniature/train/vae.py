"""Trains the miniature's video VAE: diffusers' AutoencoderKLWan with the strides of Wan2.1 (4, 8, 8) and 16 channels.

    python -m miniature.train.vae --out weights/wan/vae --minutes 45

Two pixels fold into channels before the first convolution, as Wan2.2 does: two thirds of the cost at the same strides.
Single frames come first (they teach most per second), then 17, 33 and 49 frames, the length of a generated chunk: a
causal VAE trained on short windows only loses colour beyond them.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip

CONFIG = {
    "base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "patch_size": 2, "in_channels": 12, "out_channels": 12,
}  # fmt: skip
# (share of the time, clips of a step and rank, frames of each)
SCHEDULE = ((0.2, 16, 1), (0.55, 2, 17), (0.8, 1, 33), (1.0, 1, 49))
_STORED_FRAMES = 49
_MOUTH_WEIGHT, _KL_WEIGHT = 4.0, 1e-4


class ClipStore:
    """Drawn clips kept in memory: `faces` of 64x64 and `bodies` of 96x96, 49 frames each, with mouth positions."""

    def __init__(self, faces: int, bodies: int, first_seed: int) -> None:
        seconds = _STORED_FRAMES / 25
        self.faces = [_store(draw_clip(first_seed + i, seconds)) for i in range(faces)]
        self.bodies = [_store(draw_clip(first_seed + faces + i, seconds, "half")) for i in range(bodies)]

    def batch(self, rng: np.random.Generator, size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`size` windows of 64x64: video (B, 3, F, 64, 64) in [-1, 1] and loss weights (B, 1, F, 64, 64)."""
        windows = [self._window(rng, frames) for _ in range(size)]
        video = torch.from_numpy(np.stack([w[0] for w in windows])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return video, torch.from_numpy(np.stack([w[1] for w in windows]))[:, None]

    def _window(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
        clips = self.bodies if rng.random() < 0.25 else self.faces
        pixels, mouths = clips[rng.integers(len(clips))]
        start = int(rng.integers(_STORED_FRAMES - frames + 1))
        room = pixels.shape[1] - 64
        y0, x0 = (int(v) for v in rng.integers(0, room + 1, 2))
        window = pixels[start : start + frames, y0 : y0 + 64, x0 : x0 + 64]
        weight = np.ones(window.shape[:3], np.float32)
        for t, (x, y) in enumerate(mouths[start : start + frames]):
            row, column = round(float(y)) - y0, round(float(x)) - x0
            weight[t, max(0, row - 8) : max(0, row + 9), max(0, column - 11) : max(0, column + 12)] = _MOUTH_WEIGHT
        return (window[:, :, ::-1] if rng.random() < 0.5 else window), weight


def _store(clip: DrawnClip) -> tuple[np.ndarray, np.ndarray]:
    return clip.frames, clip.keypoints[:, 3:].mean(1)


def new_vae() -> AutoencoderKLWan:
    """A fresh VAE whose posterior starts nearly certain: with the default every latent starts with noise of std 1."""
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.weight[CONFIG["z_dim"] :] *= 0.1
        vae.quant_conv.bias[CONFIG["z_dim"] :] = -5.0
    return vae


def reconstruction_loss(vae: AutoencoderKLWan, video: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L1 + 2 MSE, heavier around the mouth, plus a small KL; `video` (B, 3, F, H, W), `weight` (B, 1, F, H, W)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(video).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    error = decoded.float() - video
    distance = (weight * (error.abs() + 2 * error.square())).mean()
    return distance + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int = 3, frames: int = 49) -> dict[str, float]:
    """PSNR in dB on held-out faces, judged over a whole chunk: all, first 9 and last 9 frames."""
    parts = {"psnr": slice(None), "psnr_first_9": slice(0, 9), "psnr_last_9": slice(-9, None)}
    scores: dict[str, list[float]] = {name: [] for name in parts}
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + clips):
        pixels = torch.from_numpy(draw_clip(seed, frames / 25).frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        squared = ((decoded - pixels) / 2).square().mean((0, 1, 3, 4))
        for name, part in parts.items():
            scores[name].append(-10 * squared[part].mean().log10().item())
    return {name: sum(values) / clips for name, values in scores.items()}


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLWan, clips: int = 48) -> None:
    """Write the per-channel mean and std of training latents into the config, as the published Wan VAE has them."""
    latents = []
    for seed in range(clips):
        pixels = torch.from_numpy(draw_clip(seed, 33 / 25, "half" if seed % 4 == 0 else "face").frames)
        mode = vae.encode(pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).latent_dist.mode()
        latents.append(mode[0].flatten(1))
    values = torch.cat(latents, 1)
    vae.register_to_config(latents_mean=values.mean(1).tolist(), latents_std=values.std(1).tolist())


def train(out: Path, minutes: float, seed: int = 0, faces: int = 1200, bodies: int = 300) -> dict[str, float]:
    """Train for `minutes` (resumes from `<out>.ckpt`), write the diffusers folder `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    vae = new_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3, betas=(0.9, 0.99))
    training = TimedTraining(vae, optimizer, out, minutes)
    store = ClipStore(faces, bodies, first_seed=seed + training.rank * (faces + bodies))
    rng = np.random.default_rng((seed, training.rank, training.step))
    with _quick_norm():
        for progress in training:
            size, frames = next(window for until, *window in SCHEDULE if progress < until)
            loss = reconstruction_loss(vae, *store.batch(rng, size, frames))
            training.update(loss)
            if training.step % 50 == 0:
                training.record(frames=frames, loss=loss.item())
            if training.step % 1000 == 0 and training.rank == 0:
                training.record(**measure(vae))
    figures = measure(vae, clips=12)
    training.record(final=True, **figures)
    set_latent_statistics(vae)
    if training.rank == 0:
        vae.to(torch.bfloat16).save_pretrained(out)
    return figures


class _quick_norm:
    """The same root-mean-square norm with one reduction: diffusers' channel-wise normalise is slow on a CPU."""

    def __enter__(self) -> None:
        self.original = WanRMS_norm.forward
        WanRMS_norm.forward = lambda norm, x: (
            x * torch.rsqrt(x.square().mean(1 if norm.channel_first else -1, keepdim=True) + 1e-12) * norm.gamma
            + norm.bias
        )

    def __exit__(self, *_: object) -> None:
        WanRMS_norm.forward = self.original


if __name__ == "__main__":
    train_command(train, minutes=45)
