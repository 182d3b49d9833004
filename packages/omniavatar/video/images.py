"""Conversion between uint8 images and tensors in [-1, 1]."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def cover(height: int, width: int, target: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to which an image is scaled so that it covers `target`, and the (top, side) of the crop in its middle.

    As in upstream's `resize_pad` (truncated sizes, the odd pixel cropped from top and left), but never below the
    target: there, 2.8 % of sizes fall one pixel short and a black line is padded.
    """
    scale = max(target[0] / height, target[1] / width)
    size = max(target[0], int(height * scale)), max(target[1], int(width * scale))
    return size, ((size[0] - target[0] + 1) // 2, (size[1] - target[1] + 1) // 2)


def fit_image(image: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 RGB (H, W, 3) -> float32 (3, height, width) in [-1, 1]: scaled to cover, then cropped in the middle.

    Raises ValueError for another kind of array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"An image of {image.dtype} {image.shape}; expected uint8 RGB (height, width, 3).")
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    size, (top, side) = cover(image.shape[0], image.shape[1], (height, width))
    if size != image.shape[:2]:
        pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return pixels[0, :, top : top + height, side : side + width] / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """(3, F, H, W) in [-1, 1] -> uint8 RGB (F, H, W, 3), rounded."""
    scaled = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 3, 0).contiguous().cpu().numpy()
