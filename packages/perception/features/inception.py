"""Inception-v3 of 2015-12-05 as FID uses it; key names of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`.

23,850,960 parameters, 566 entries, pool3 features of 2048 numbers. Its poolings differ from the usual Inception-v3:
averages do not count the padding, and the last block takes a maximum instead.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad=None) -> None:
        super().__init__()
        if pad is None:
            pad = (0, 0) if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inside, outside, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5 and double 3x3 branches."""

    def __init__(self, inside: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(inside, 64)
        self.branch5x5_1 = ConvNorm(inside, 48)
        self.branch5x5_2 = ConvNorm(48, 64, (5, 5))
        self.branch3x3dbl_1 = ConvNorm(inside, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3))
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3))
        self.branch_pool = ConvNorm(inside, pool)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branches = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))]
        return torch.cat(branches, 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(inside, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(inside, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3))
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7x7 convolutions as pairs of 1x7 and 7x1, `width` channels between them."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = ConvNorm(inside, 192)
        self.branch7x7_1 = ConvNorm(inside, width)
        self.branch7x7_2 = ConvNorm(width, width, row)
        self.branch7x7_3 = ConvNorm(width, 192, column)
        self.branch7x7dbl_1 = ConvNorm(inside, width)
        self.branch7x7dbl_2 = ConvNorm(width, width, column)
        self.branch7x7dbl_3 = ConvNorm(width, width, row)
        self.branch7x7dbl_4 = ConvNorm(width, width, column)
        self.branch7x7dbl_5 = ConvNorm(width, 192, row)
        self.branch_pool = ConvNorm(inside, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(inside, 192)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(inside, 192)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8: 3x3 branches that end in a 1x3 and a 3x1 side by side; the last block of the net pools by maximum."""

    def __init__(self, inside: int, last: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.last = last
        self.branch1x1 = ConvNorm(inside, 320)
        self.branch3x3_1 = ConvNorm(inside, 384)
        self.branch3x3_2a = ConvNorm(384, 384, row)
        self.branch3x3_2b = ConvNorm(384, 384, column)
        self.branch3x3dbl_1 = ConvNorm(inside, 448)
        self.branch3x3dbl_2 = ConvNorm(448, 384, (3, 3))
        self.branch3x3dbl_3a = ConvNorm(384, 384, row)
        self.branch3x3dbl_3b = ConvNorm(384, 384, column)
        self.branch_pool = ConvNorm(inside, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        split = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        split += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], 1)


class FIDInception(nn.Module):
    """RGB (n, 3, 299, 299), 0..255 -> (n, 2048); called like the TorchScript file `inception-2015-12-05.pt`."""

    input_size = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        x = (pixels - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        blocks = [self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c]
        for block in (*blocks, self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        features = x.mean((2, 3))
        return features if return_features else self.fc(features)
