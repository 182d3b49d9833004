"""Pictures and sounds as people have them -> what the model takes. Everything is checked here, before any weight loads.

Pictures become uint8 RGB (H, W, 3), sounds float32 mono (N,).
"""

import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from common.errors import InputError, MissingFileError
from common.media.audio import read_audio
from common.media.open import audio_stream, open_media
from common.media.video import read_video
from omniavatar.config import Request

SMALLEST_SIDE = 32
LARGEST_SIDE = 4096  # more pixels than any size of the model can use; a larger picture is averaged down on reading
LARGEST_RATIO = 8.0
LONGEST_SOUND = 4 * 3600.0
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
AAC_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


class Sound(NamedTuple):
    """`heard` (N,) at 16 kHz is what the model gets, `played` (M,) at `rate` what the finished video plays."""

    heard: np.ndarray
    played: np.ndarray
    rate: int


class Inputs(NamedTuple):
    """A request as arrays; `image` None is still to be drawn."""

    image: np.ndarray | None
    sound: Sound
    prompt: str


def read_request(request: Request) -> Inputs:
    """Read and check everything a request names. Raises InputError, FileNotFoundError, MediaError."""
    if request.image is None and not request.prompt.strip():
        raise InputError("Neither an image nor a prompt was given; give --image, or --prompt to have a portrait drawn.")
    if request.audio is None and not request.seconds:
        raise InputError("No sound was given; give --audio, or --seconds for a silent video of that length.")
    if request.audio is not None and request.seconds:
        raise InputError(f"Both a sound and seconds={request.seconds:g} were given; the sound decides the length.")
    image = None if request.image is None else read_image(request.image)
    sound = silent_sound(request.seconds) if request.audio is None else read_sound(request.audio)
    return Inputs(image, sound, request.prompt)


def read_image(path: Path | str) -> np.ndarray:
    """A picture file upright and in sRGB, uint8 (H, W, 3); of a GIF or a video the first frame.

    Orientation by EXIF and a colour profile are applied, grey, CMYK, palette and 16 bit pictures converted, transparent
    parts laid on white, sides beyond 4096 px averaged down. Raises FileNotFoundError, InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no picture at {path}; give a picture file (JPEG, PNG, ...) of a portrait.")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return check_sides(read_video(path, end=1 / 25)[0], path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return check_sides(to_rgb(picture), path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that can be read; give a JPEG, PNG, WebP or similar file."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels ({error}); give a picture of at most 8000 px a side.") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); give a picture that opens in a viewer.") from error


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Any Pillow picture -> uint8 RGB (H, W, 3) as `read_image` says. Raises OSError where its data end early."""
    picture.load()
    profile = picture.info.get("icc_profile")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(upright)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if profile and upright.mode in ("RGB", "CMYK", "L"):
        upright = _to_srgb(upright, profile)
    upright = upright.convert("RGB")
    factor = math.ceil(max(upright.size) / LARGEST_SIDE)
    return np.asarray(upright.reduce(factor) if factor > 1 else upright).copy()


def _eight_bits(picture: Image.Image) -> Image.Image:
    # Pillow's own conversion cuts 16 bit values off at 255 instead of scaling them.
    values = np.asarray(picture).astype(np.float64)
    top = 255.0 if values.max() <= 255 and picture.mode != "F" else 65535.0
    if picture.mode == "F":
        top = max(1.0, float(np.nan_to_num(values).max()))
    return Image.fromarray(np.clip(np.nan_to_num(values) * 255 / top, 0, 255).round().astype(np.uint8))


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture  # a broken or foreign profile: the plain conversion is what viewers show
    return picture if converted is None else converted


def check_sides(image: np.ndarray, name: Path | str) -> np.ndarray:
    """The picture (H, W, 3) itself. Raises InputError for one too small or too narrow to be a portrait."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"{name} is {width}x{height} px; expected at least {SMALLEST_SIDE} px on each side.")
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise InputError(f"{name} is {width}x{height} px, a strip; crop it to the person.")
    return image


def read_sound(path: Path | str) -> Sound:
    """The sound of any file ffmpeg reads (wav, mp3, flac, m4a, mp4, ...), mixed to mono.

    It is played back at its own rate where AAC has it, else at 48 kHz. Raises FileNotFoundError, InputError and
    common.media.video.MediaError.
    """
    with open_media(path) as container:
        stream = audio_stream(container)
        rate = stream.rate if stream is not None and stream.rate in AAC_RATES else AAC_RATES[-1]
    heard = read_audio(path)
    if not len(heard):
        raise InputError(f"{path} holds a sound of 0 s; give one with something to hear.")
    if len(heard) > LONGEST_SOUND * AUDIO_RATE:
        raise InputError(
            f"{path} lasts {len(heard) / AUDIO_RATE / 3600:.1f} hours; cut it to {LONGEST_SOUND / 3600:g}."
        )
    if not np.isfinite(heard).all():
        raise InputError(f"{path} holds values that are no numbers; convert it to 16 bit.")
    return Sound(heard, heard if rate == AUDIO_RATE else read_audio(path, rate), rate)


def silent_sound(seconds: float) -> Sound:
    """Silence of so many seconds: the model gets a sound that is dropped, as in training. Raises InputError."""
    if not 1 / 25 <= seconds <= LONGEST_SOUND:
        raise InputError(f"seconds is {seconds:g}; expected 0.04 (one frame) to {LONGEST_SOUND:g}.")
    heard = np.zeros(round(seconds * 25) * SAMPLES_PER_FRAME, np.float32)
    return Sound(heard, heard, AUDIO_RATE)
