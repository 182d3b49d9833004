"""Trains the miniature's feature nets for FID and FVD and stores them as TorchScript with the published conventions.

    python -m miniature.train.feature_nets --out weights --minutes 6

`fid/inception.pt` answers like NVIDIA's `inception-2015-12-05.pt`, `fvd/i3d_torchscript.pt` like the I3D file of it.
Their features are whatever tells drawn people apart: who is seen, what the mouth says, how the clip is played, damage.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.runs import atomic_write
from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip
from miniature.world.damage import CLEAN_CRF, Damage, code, draw_damage
from miniature.world.figure import COLOURS, HAIR_STYLES, PATTERNS, SKINS
from perception.features.nets import frame_features, load_feature_net, video_features

ATTRIBUTES: dict[str, Sequence[str]] = {
    "skin": tuple(SKINS), "hair_style": HAIR_STYLES, "clothes": tuple(COLOURS), "background": tuple(COLOURS),
    "pattern": PATTERNS,
}  # fmt: skip
PLAYS = ("normal", "reversed", "frozen", "half", "double", "shuffled")
WINDOW = 16  # frames
_SIZE = 64
_MOUTH, _DAMAGE, _WHO = 3, 4, sum(len(options) for options in ATTRIBUTES.values())


Loss = Callable[[nn.Module, Any, np.random.Generator], Tensor]


class Mixed(nn.Module):
    """Inception's idea in small: a 1x1, a 3x3 and a double 3x3 branch side by side."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        quarter, half = outside // 4, outside // 2
        self.point = nn.Conv2d(inside, quarter, 1)
        self.three = nn.Sequential(nn.Conv2d(inside, quarter, 1), nn.ReLU(), nn.Conv2d(quarter, half, 3, padding=1))
        self.double_three = nn.Sequential(
            nn.Conv2d(inside, quarter, 1), nn.ReLU(), nn.Conv2d(quarter, quarter, 3, padding=1), nn.ReLU(),
            nn.Conv2d(quarter, quarter, 3, padding=1),
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat([self.point(x), self.three(x), self.double_three(x)], dim=1)))


class FrameNet(nn.Module):
    """RGB (n, 3, H, W), uint8 or float 0..255, resized to 64 px -> features (n, 96), or answers to every question."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.input_size = _SIZE
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.ReLU(), Mixed(24, 32), nn.MaxPool2d(2),
            Mixed(32, 64), nn.MaxPool2d(2), Mixed(64, 96), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.output = nn.Linear(96, answers)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.to(torch.float32)
        if x.shape[2] != self.input_size or x.shape[3] != self.input_size:
            size = [self.input_size, self.input_size]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).flatten(1)
        return features if return_features else self.output(features)


class VideoNet(nn.Module):
    """RGB (n, 3, T, H, W) -> features (n, 64), or answers.

    `rescale` expects 0..255 and maps it to [-1, 1]; `resize` squashes any size to 64 px. Without them both are done.
    """

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.input_size = _SIZE
        self.layers = nn.Sequential(
            _convolution(6, 12, (1, 5, 5), (1, 2, 2)), _convolution(12, 24, (3, 3, 3), (2, 2, 2)),
            _convolution(24, 36, (1, 3, 3), (1, 2, 2)), _convolution(36, 36, (3, 1, 1), (2, 1, 1)),
            _convolution(36, 56, (1, 3, 3), (1, 2, 2)), _convolution(56, 64, (3, 1, 1), (1, 1, 1)),
            nn.AdaptiveAvgPool3d(1),
        )  # fmt: skip
        self.output = nn.Linear(64, answers)

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        x = x.to(torch.float32)
        if resize:
            frames = x.transpose(1, 2).flatten(0, 1)
            frames = F.interpolate(frames, [self.input_size, self.input_size], mode="bilinear", align_corners=False)
            x = frames.unflatten(0, [x.shape[0], x.shape[2]]).transpose(1, 2)
        if rescale:
            x = x / 127.5 - 1
        # Motion is small beside the image, so it is shown apart: what changed since the frame before, enlarged.
        motion = 4 * (x[:, :, 1:] - x[:, :, :-1])
        features = self.layers(torch.cat([x[:, :, 1:], motion], dim=1)).flatten(1)
        return features if return_features else self.output(features)


def _convolution(
    inside: int, outside: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> nn.Sequential:
    padding = kernel[0] // 2, kernel[1] // 2, kernel[2] // 2
    convolution = nn.Conv3d(inside, outside, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outside), nn.ReLU())


class Drawn:
    """Drawn clips in memory, one in four a half body reduced to 64 px, with their truth.

    `frames` uint8 (clips, T, 64, 64, 3); `attributes` (clips, 5) numbers; `mouth` and `phones` (clips, T, ..).
    """

    def __init__(self, clips: int, first_seed: int, frames: int) -> None:
        drawn = [draw_clip(first_seed + i, frames / 25, "half" if i % 4 == 3 else "face") for i in range(clips)]
        self.frames = np.stack([_reduced(clip.frames) for clip in drawn])
        self.attributes = torch.tensor([_attributes(clip) for clip in drawn])
        self.mouth = torch.from_numpy(np.stack([clip.mouth for clip in drawn])).float()
        self.phones = torch.from_numpy(np.stack([clip.phones for clip in drawn])).float()

    def damaged(self, clip: int, times: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Frames `times` of a clip, half of them with one drawn damage, and the severity of its first four kinds."""
        damage = draw_damage(rng) if rng.random() < 0.5 else Damage()
        return damage.apply(self.frames[clip, times], rng), damage.parts()[:_DAMAGE].astype(np.float32)


def _reduced(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(frame, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA) for frame in frames])


def _attributes(clip: DrawnClip) -> list[int]:
    names = {**clip.identity, "background": clip.identity["background"][0]}
    return [list(options).index(names[attribute]) for attribute, options in ATTRIBUTES.items()]


def frame_loss(net: nn.Module, drawn: Drawn, rng: np.random.Generator, size: int = 32) -> Tensor:
    """Who is seen (cross-entropies), mouth and damage (squared errors), on `size` frames."""
    clips, times = rng.integers(len(drawn.frames), size=size), rng.integers(drawn.frames.shape[1], size=size)
    seen = [drawn.damaged(clip, np.array([time]), rng) for clip, time in zip(clips, times, strict=True)]
    answers = net(channels_first(np.concatenate([frames for frames, _ in seen])))
    who, rest = answers.split([_WHO, _MOUTH + _DAMAGE], dim=1)
    return _who_loss(who, drawn.attributes[clips]) + _exact_loss(rest, drawn.mouth[clips, times], seen)


def video_loss(net: nn.Module, drawn: Drawn, rng: np.random.Generator, size: int = 8) -> Tensor:
    """As `frame_loss` about the middle frame of `size` windows, and how each is played, and its phones (soft)."""
    clips, plays = rng.integers(len(drawn.frames), size=size), rng.integers(len(PLAYS), size=size)
    orders = [played(PLAYS[play], drawn.frames.shape[1], rng) for play in plays]
    seen = [drawn.damaged(clip, order, rng) for clip, order in zip(clips, orders, strict=True)]
    answers = net(channels_first(np.stack([frames for frames, _ in seen])).transpose(1, 2))
    middles = np.array([order[WINDOW // 2] for order in orders])
    phones = drawn.phones[clips, middles]
    play, who, phone, rest = answers.split([len(PLAYS), _WHO, phones.shape[1], _MOUTH + _DAMAGE], dim=1)
    spoken = -(phones * phone.log_softmax(1)).sum(1).mean()
    motion = 2 * F.cross_entropy(play, torch.from_numpy(plays)) + spoken
    return motion + _who_loss(who, drawn.attributes[clips]) + _exact_loss(rest, drawn.mouth[clips, middles], seen)


def _who_loss(answers: Tensor, attributes: Tensor) -> Tensor:
    parts = answers.split([len(options) for options in ATTRIBUTES.values()], dim=1)
    losses = [F.cross_entropy(part, truth) for part, truth in zip(parts, attributes.T, strict=True)]
    return torch.stack(losses).sum()


def _exact_loss(answers: Tensor, mouth: Tensor, seen: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    damage = torch.from_numpy(np.stack([severity for _, severity in seen]))
    return 20 * F.mse_loss(answers, torch.cat([mouth, damage], dim=1))


def played(play: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Frame numbers (16,) of a window of a clip of `frames` (at least 32), played in one of the PLAYS."""
    steps = np.arange(WINDOW)
    order = {
        "normal": steps, "reversed": steps[::-1], "frozen": np.full(WINDOW, WINDOW // 2), "half": steps // 2,
        "double": 2 * steps, "shuffled": rng.permutation(WINDOW),
    }[play]  # fmt: skip
    return int(rng.integers(frames - 2 * WINDOW + 1)) + order


def channels_first(frames: np.ndarray) -> Tensor:
    """(..., H, W, 3) -> (..., 3, H, W)"""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3)))


def fit(net: nn.Module, loss_of: Loss, drawn: Drawn, out: Path, minutes: float, seed: int) -> TimedTraining:
    """Train `net` for `minutes` (resumes from `<out>.ckpt`) and write it as the TorchScript file `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    training = TimedTraining(net, torch.optim.AdamW(net.parameters(), lr=3e-3), out, minutes)
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        loss = loss_of(net, drawn, rng)
        training.update(loss)
        if training.step % 50 == 0:
            training.record(loss=loss.item())
    write_torchscript(net, out)
    return training


def write_torchscript(net: nn.Module, out: Path) -> None:
    """Store `net` in evaluation mode as TorchScript, the format in which the published nets exist."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        scripted = torch.jit.script(net.eval())
    with atomic_write(out) as temporary:
        scripted.save(str(temporary))


def train(out: Path, minutes: float, seed: int = 0, clips: int = 480, held_out: int = 60) -> dict[str, float]:
    """Train both nets for half of `minutes` each and write them under the folder `out`; returns their figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    drawn = Drawn(clips, first_seed=seed, frames=2 * WINDOW + 3)
    frame_net = FrameNet(_WHO + _MOUTH + _DAMAGE)
    video_net = VideoNet(len(PLAYS) + _WHO + drawn.phones.shape[2] + _MOUTH + _DAMAGE)
    figures: dict[str, float] = {}
    for net, loss_of, name, measure in (
        (frame_net, frame_loss, "fid/inception.pt", measure_frames),
        (video_net, video_loss, "fvd/i3d_torchscript.pt", measure_videos),
    ):
        training = fit(net, loss_of, drawn, out / name, minutes / 2, seed)
        measured = measure(load_feature_net(out / name), held_out)
        training.record(final=True, **measured)
        figures |= measured
    return figures


@torch.no_grad()
def measure_frames(net: nn.Module, clips: int) -> dict[str, float]:
    """FID of held-out faces against themselves coded, softened (sigma 1), blurred (2) and with noise (25), at 64 px,
    and against other people."""
    rng = np.random.default_rng(0)
    drawn = Drawn(2 * clips, HELD_OUT_SEED, frames=4)
    reference, other = (frames.reshape(-1, _SIZE, _SIZE, 3) for frames in np.split(drawn.frames, 2))
    shown = {"coded": code(reference, CLEAN_CRF), "others": other}
    for name, kind in {"soft": Damage(blur=1.0), "blur": Damage(blur=2.0), "noise": Damage(noise=25.0)}.items():
        shown[name] = kind.apply(reference, rng)
    real = frame_features(net, reference)
    return {f"fid_{name}": frechet(real, frame_features(net, frames)) for name, frames in shown.items()}


@torch.no_grad()
def measure_videos(net: nn.Module, clips: int) -> dict[str, float]:
    """FVD of held-out clips against themselves played in each of the PLAYS, and blurred by sigma 2."""
    rng = np.random.default_rng(0)
    drawn = Drawn(clips, HELD_OUT_SEED, frames=2 * WINDOW + 3)

    def features(play: str, damage: Damage) -> np.ndarray:
        windows = [frames[played(play, len(frames), rng)] for frames in drawn.frames for _ in range(2)]
        return np.concatenate([video_features(net, damage.apply(window, rng)) for window in windows])

    real = features("normal", Damage())
    figures = {f"fvd_{play}": frechet(real, features(play, Damage())) for play in PLAYS}
    return figures | {"fvd_blur": frechet(real, features("normal", Damage(blur=2.0)))}


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of features (n, d) and (m, d): |difference of means|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return float(means + np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.norm(a @ b.T, "nuc"))


if __name__ == "__main__":
    train_command(train, minutes=6)
