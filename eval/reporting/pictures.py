"""Frames and image files as data URIs, so that the report is one file."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import InputError
from common.media.images import read_image_file
from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import read_frames

STRIP_FRAMES = 6
STRIP_HEIGHT = 128
PORTRAIT_HEIGHT = 192


def data_uri(content: bytes, kind: str) -> str:
    """A `data:` address of some bytes of MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(pixels: np.ndarray, height: int | None = None) -> str:
    """An image (H, W, 3) uint8 RGB as JPEG, scaled to `height` when given."""
    image = Image.fromarray(pixels)
    if height and height != image.height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86)
    return data_uri(buffer.getvalue(), "image/jpeg")


def frame_strip(path: Path, frames: int = STRIP_FRAMES, start: float = 0.0, end: float | None = None) -> str | None:
    """Evenly spaced frames between two times (s) side by side as one JPEG; None when the file cannot be read."""
    strip = side_by_side(path, frames, start, end)
    return None if strip is None else jpeg_uri(strip, STRIP_HEIGHT)


def side_by_side(path: Path, frames: int, start: float = 0.0, end: float | None = None) -> np.ndarray | None:
    """Evenly spaced frames of a video in one image (H, frames * W, 3); None when the file cannot be read."""
    try:
        positions = index_video(path).sample(25.0, start, end)
        chosen = positions[np.linspace(0, len(positions) - 1, min(frames, len(positions))).round().astype(int)]
        return np.concatenate(list(read_frames(path, [int(i) for i in chosen])), axis=1)
    except (FileNotFoundError, MediaError, IndexError):
        return None


def image_file_uri(path: Path) -> str | None:
    """An image file as JPEG; None when it is absent or cannot be read."""
    try:
        return jpeg_uri(read_image_file(path), PORTRAIT_HEIGHT)
    except (InputError, FileNotFoundError):
        return None
