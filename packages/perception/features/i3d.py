"""I3D for FVD: the two-stream Inception of Carreira and Zisserman (2017), RGB stream, 400 classes of Kinetics.

Key names of the state dict `i3d_pretrained_400.pt` that VideoGPT, TATS and cd-fvd share: 344 entries, 12,697,264
parameters. Padding is TensorFlow's "SAME": as much as is needed for ceil(size / stride) places, the odd one at the end.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 400
MIN_FRAMES = 9  # time is halved three times, and the last pooling takes two steps

# Channels of an inception block: 1x1, reduced and 3x3, reduced and second 3x3, projection after pooling.
_BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad (B, C, T, H, W) with zeros as TensorFlow's "SAME" does for `kernel` and `stride` (T, H, W)."""
    margins: list[int] = []
    for size, width, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        missing = max((-(-size // step) - 1) * step + width - size, 0)
        margins += [missing // 2, missing - missing // 2]
    return F.pad(x, margins)


def pool_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Maximum over "SAME" windows of x >= 0 (B, C, T, H, W): after a ReLU a zero at the border changes no maximum."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution with "SAME" padding and, but for the logits, batch norm and ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inside, outside, kernel, stride, bias=last)
        # The scripts that share this file use 1e-5, not the 1e-3 the network was first ported with.
        self.bn = None if last else nn.BatchNorm3d(outside)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Block(nn.Module):
    """Four branches side by side, as in Inception-v1."""

    def __init__(self, inside: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduced, three, reduced_again, three_again, pooled = widths
        self.b0 = Unit(inside, one, 1)
        self.b1a, self.b1b = Unit(inside, reduced, 1), Unit(reduced, three, 3)
        self.b2a, self.b2b = Unit(inside, reduced_again, 1), Unit(reduced_again, three_again, 3)
        self.b3b = Unit(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """RGB (B, 3, T >= 9, 224, 224) -> (B, 400); called like the TorchScript file `i3d_torchscript.pt`."""

    input_size = 224

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (inside, widths) in _BLOCKS.items():
            self.add_module(name, Block(inside, widths))
        self.logits = Unit(1024, CLASSES, 1, last=True)

    def forward(
        self, video: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        """Logits, the features of FVD, or with `return_features` off their softmax.

        `rescale` takes 0..255 instead of -1..1; `resize` squashes any size to 224 px, bilinear without anti-aliasing.
        """
        if resize:
            size = (video.shape[2], self.input_size, self.input_size)
            frames = video.transpose(1, 2).flatten(0, 1)
            frames = F.interpolate(frames, size=size[1:], mode="bilinear", align_corners=False)
            video = frames.unflatten(0, (len(video), size[0])).transpose(1, 2)
        x = video / 127.5 - 1 if rescale else video
        x = pool_same(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pool_same(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = pool_same(self._blocks("Mixed_3", x), (3, 3, 3), (2, 2, 2))
        x = pool_same(self._blocks("Mixed_4", x), (2, 2, 2), (2, 2, 2))
        x = F.avg_pool3d(self._blocks("Mixed_5", x), (2, 7, 7), stride=1)
        logits = self.logits(x).mean(dim=(2, 3, 4))
        return logits if return_features else logits.softmax(dim=1)

    def _blocks(self, stage: str, x: Tensor) -> Tensor:
        for name in _BLOCKS:
            if name.startswith(stage):
                x = self.get_submodule(name)(x)
        return x
