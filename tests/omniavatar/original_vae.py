"""A second writing of Wan2.1's video autoencoder, whole clips at once, under the tensor names of `Wan2.1_VAE.pth`.

From its description: causal convolutions look back only, zeros stand before the first frame; in time, frame 0 is never
merged or doubled; every level halves or doubles height and width. Tensors are (B, C, F, H, W), weights a flat dict.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
CHANNELS = (1, 2, 4, 4)
MERGE_TIME = (False, True, True)  # after levels 0, 1, 2 of the encoder; mirrored in the decoder
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
MEAN += [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
STD += [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]


def random_weights(width: int, latent: int = 16, seed: int = 0) -> Weights:
    """Every tensor of the file, 194 of them, at base width `width`; of a size that keeps activations near one."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, *kernel), (outputs,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.residual.0.gamma"], shapes[f"{name}.residual.3.gamma"] = (inputs, 1, 1, 1), (outputs, 1, 1, 1)
        conv(f"{name}.residual.2", inputs, outputs, 3, 3, 3)
        conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        if inputs != outputs:
            conv(f"{name}.shortcut", inputs, outputs, 1, 1, 1)

    def ends(half: str, first: tuple[int, int], deep: int, last: tuple[int, int]) -> None:
        conv(f"{half}.conv1", *first, 3, 3, 3)
        for place in (0, 2):
            residual(f"{half}.middle.{place}", deep, deep)
        shapes[f"{half}.middle.1.norm.gamma"] = (deep, 1, 1)
        conv(f"{half}.middle.1.to_qkv", deep, 3 * deep, 1, 1)
        conv(f"{half}.middle.1.proj", deep, deep, 1, 1)
        shapes[f"{half}.head.0.gamma"] = (last[0], 1, 1, 1)
        conv(f"{half}.head.2", *last, 3, 3, 3)

    widths = [factor * width for factor in CHANNELS]
    ends("encoder", (3, width), widths[-1], (widths[-1], 2 * latent))
    place, now = 0, width
    for level, outputs in enumerate(widths):
        for _ in range(2):
            residual(f"encoder.downsamples.{place}", now, outputs)
            place, now = place + 1, outputs
        if level < 3:
            conv(f"encoder.downsamples.{place}.resample.1", now, now, 3, 3)
            if MERGE_TIME[level]:
                conv(f"encoder.downsamples.{place}.time_conv", now, now, 3, 1, 1)
            place += 1
    ends("decoder", (latent, widths[-1]), widths[-1], (width, 3))
    place, now = 0, widths[-1]
    for level, outputs in enumerate(reversed(widths)):
        for _ in range(3):
            residual(f"decoder.upsamples.{place}", now, outputs)
            place, now = place + 1, outputs
        if level < 3:
            conv(f"decoder.upsamples.{place}.resample.1", now, now // 2, 3, 3)
            if MERGE_TIME[2 - level]:
                conv(f"decoder.upsamples.{place}.time_conv", now, 2 * now, 3, 1, 1)
            place, now = place + 1, now // 2
    conv("conv1", 2 * latent, 2 * latent, 1, 1, 1)
    conv("conv2", latent, latent, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("gamma"):
        return 1 + 0.3 * noise
    return noise * (0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)


def causal(w: Weights, name: str, x: Tensor) -> Tensor:
    """A 3D convolution that sees a frame and those before it; kernels of one pixel need no border."""
    time, height, width = w[f"{name}.weight"].shape[2:]
    x = functional.pad(x, (width // 2, width // 2, height // 2, height // 2, time - 1, 0))
    return functional.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"])


def flat(w: Weights, name: str, x: Tensor, **how: object) -> Tensor:
    """A 2D convolution of every frame by itself."""
    frames = x.transpose(1, 2).flatten(0, 1)
    frames = functional.conv2d(frames, w[f"{name}.weight"], w[f"{name}.bias"], **how)
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def norm(gamma: Tensor, x: Tensor) -> Tensor:
    """Length one over the channels, times the root of their number and a gain each."""
    return x / x.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12) * x.shape[1] ** 0.5 * gamma.view(1, -1, 1, 1, 1)


def residual(w: Weights, name: str, x: Tensor) -> Tensor:
    y = causal(w, f"{name}.residual.2", functional.silu(norm(w[f"{name}.residual.0.gamma"], x)))
    y = causal(w, f"{name}.residual.6", functional.silu(norm(w[f"{name}.residual.3.gamma"], y)))
    return y + (causal(w, f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)


def attention(w: Weights, name: str, x: Tensor) -> Tensor:
    """One head over the pixels of each frame."""
    joined = flat(w, f"{name}.to_qkv", norm(w[f"{name}.norm.gamma"], x))
    query, key, value = (part.transpose(1, 2).flatten(3) for part in joined.chunk(3, dim=1))  # (B, F, C, pixels)
    weights = (query.transpose(2, 3) @ key / query.shape[2] ** 0.5).softmax(-1)
    seen = (value @ weights.transpose(2, 3)).unflatten(3, x.shape[3:]).transpose(1, 2)
    return x + flat(w, f"{name}.proj", seen)


def middle(w: Weights, half: str, x: Tensor) -> Tensor:
    x = attention(w, f"{half}.middle.1", residual(w, f"{half}.middle.0", x))
    return residual(w, f"{half}.middle.2", x)


def head(w: Weights, half: str, x: Tensor) -> Tensor:
    return causal(w, f"{half}.head.2", functional.silu(norm(w[f"{half}.head.0.gamma"], x)))


def shrink(w: Weights, name: str, x: Tensor) -> Tensor:
    """Half of height and width; where it has a time convolution, frame 0 stays and pairs of the others are merged."""
    x = flat(w, f"{name}.resample.1", functional.pad(x, (0, 1, 0, 1)), stride=2)
    if f"{name}.time_conv.weight" not in w:
        return x
    merged = functional.conv3d(x, w[f"{name}.time_conv.weight"], w[f"{name}.time_conv.bias"], stride=(2, 1, 1))
    return torch.cat([x[:, :, :1], merged], dim=2)


def grow(w: Weights, name: str, x: Tensor) -> Tensor:
    """Twice the height and width; with a time convolution each frame but the first becomes two.

    That convolution does not see frame 0: zeros stand before frame 1.
    """
    if f"{name}.time_conv.weight" in w and x.shape[2] > 1:
        both = causal(w, f"{name}.time_conv", x[:, :, 1:]).unflatten(1, (2, -1))  # (B, 2, C, F - 1, H, W)
        x = torch.cat([x[:, :, :1], both.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    doubled = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    return flat(w, f"{name}.resample.1", doubled, padding=1)


def encode(w: Weights, video: Tensor) -> Tensor:
    """(B, 3, F, H, W) -> normalised means (B, 16, T, H/8, W/8)."""
    x = causal(w, "encoder.conv1", video)
    places = sorted({int(name.split(".")[2]) for name in w if name.startswith("encoder.downsamples.")})
    for name in (f"encoder.downsamples.{place}" for place in places):
        x = shrink(w, name, x) if f"{name}.resample.1.weight" in w else residual(w, name, x)
    moments = causal(w, "conv1", head(w, "encoder", middle(w, "encoder", x)))
    mean = moments[:, : moments.shape[1] // 2]
    return (mean - torch.tensor(MEAN).view(1, -1, 1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1, 1)


def decode(w: Weights, latents: Tensor) -> Tensor:
    """Normalised latents -> (B, 3, F, H, W), clamped to [-1, 1]."""
    x = latents * torch.tensor(STD).view(1, -1, 1, 1, 1) + torch.tensor(MEAN).view(1, -1, 1, 1, 1)
    x = middle(w, "decoder", causal(w, "decoder.conv1", causal(w, "conv2", x)))
    places = sorted({int(name.split(".")[2]) for name in w if name.startswith("decoder.upsamples.")})
    for name in (f"decoder.upsamples.{place}" for place in places):
        x = grow(w, name, x) if f"{name}.resample.1.weight" in w else residual(w, name, x)
    return head(w, "decoder", x).clamp(-1, 1)
