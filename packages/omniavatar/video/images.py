"""Image sizes the model was trained on, and conversion between uint8 images and tensors in [-1, 1]."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from common.errors import InputError

# Height x width by the longest side asked for: the small world, then "480p" and "720p" of the released configs.
BUCKETS: dict[int, tuple[tuple[int, int], ...]] = {
    64: ((64, 64),),
    96: ((96, 96),),
    720: ((400, 720), (720, 720), (720, 400)),
    1280: ((720, 720), (528, 960), (960, 528), (720, 1280), (1280, 720)),
}


def choose_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """The bucket with the nearest height : width ratio. Raises ValueError for an unknown `longest`."""
    if longest not in BUCKETS:
        raise InputError(f"No image sizes for a longest side of {longest}; expected one of {sorted(BUCKETS)}.")
    return min(BUCKETS[longest], key=lambda size: abs(size[0] / size[1] - height / width))


def fit_image(image: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 RGB (H, W, 3) -> float32 (3, height, width) in [-1, 1]: scaled to cover, then cropped in the middle.

    Raises ValueError for another kind of array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"An image of {image.dtype} {image.shape}; expected uint8 RGB (height, width, 3).")
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    scale = max(height / image.shape[0], width / image.shape[1])
    # Rounded to the nearest and never below the target: truncation would leave a black line at some sizes.
    size = (max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale)))
    if size != image.shape[:2]:
        pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    return pixels[0, :, y : y + height, x : x + width] / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """(3, F, H, W) in [-1, 1] -> uint8 RGB (F, H, W, 3), rounded."""
    scaled = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(1, 2, 3, 0).contiguous().cpu().numpy()
