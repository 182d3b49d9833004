"""Reading of picture files as people see them: upright, in sRGB, by an allow-list of formats (Pillow)."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from common.errors import InputError, MissingFileError

# Formats of pictures alone: none that runs a program (EPS), is drawn by the system (WMF), or has no signature (TGA).
# JPEG includes what telephones write with several pictures (MPO).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
MAX_FILE_BYTES = 2**30
# A colour profile; Pillow's own 1 MB is too little for some, and 64 MB of all of them together remain the most.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEYWORD = b"XML:com.adobe.xmp\0"
# What Pillow's readers raise on damaged files besides OSError.
DAMAGE = (SyntaxError, EOFError, ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error, MemoryError)


def read_image_file(path: Path | str, longest: int | None = None) -> np.ndarray:
    """A picture file as `image_to_rgb` converts it; of several pictures in one file the first.

    At most 179 million pixels, Pillow's limit. Raises FileNotFoundError; InputError, which never repeats content of
    the file, for another format, too many pixels or damage.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no image at {path}; give an image file (JPEG, PNG, ...).")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; give an image file of at most 1 GiB.")
    try:
        with _opened(path) as image:
            return image_to_rgb(image, longest)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that can be read; give a JPEG, PNG, WebP or similar file.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels; give an image of at most 13,000 px a side.") from error
    except (OSError, *DAMAGE) as error:
        raise InputError(f"{path} is damaged or cut short; give an image that opens in a viewer.") from error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Every picture file is opened here."""
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # of odd metadata, and of what is large but not too large
        source = _without_text(file) if file.read(8) == PNG_SIGNATURE else file
        source.seek(0)
        with Image.open(source, formats=FORMATS) as image:
            yield image


def _without_text(file: BinaryIO) -> BinaryIO:
    """A PNG without its text chunks, in which tools keep whole workflows and which may unpack to any size.

    XMP stays, for the orientation. `file` stands after the signature.
    """
    kept = io.BytesIO()
    kept.write(PNG_SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body = file.read(length + 4)  # with the checksum
        if kind not in PNG_TEXT or (kind == b"iTXt" and body.startswith(XMP_KEYWORD)):
            kept.write(head + body)
    return kept


def image_to_rgb(image: Image.Image, longest: int | None = None) -> np.ndarray:
    """Any Pillow image -> uint8 RGB (H, W, 3) as people see it.

    EXIF orientation and colour profile are applied; grey, CMYK, palette and 16 bit images are converted; transparent
    areas become white; sides beyond `longest` px are averaged down. Raises OSError for truncated data.
    """
    image.load()
    profile = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(upright)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if profile and upright.mode in ("RGB", "CMYK", "L"):
        upright = _to_srgb(upright, profile)
    upright = upright.convert("RGB")
    factor = math.ceil(max(upright.size) / longest) if longest else 1
    return np.asarray(upright.reduce(factor) if factor > 1 else upright).copy()


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion cuts 16 bit values off at 255 instead of scaling them.
    values = np.asarray(image).astype(np.float64)
    top = 255.0 if values.max() <= 255 and image.mode != "F" else 65535.0
    if image.mode == "F":
        top = max(1.0, float(np.nan_to_num(values).max()))
    return Image.fromarray(np.clip(np.nan_to_num(values) * 255 / top, 0, 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken or unsuitable profile: viewers show the plain conversion
    return image if converted is None else converted
