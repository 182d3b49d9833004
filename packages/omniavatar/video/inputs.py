"""Reading of the user's images and audio files; every input error is raised here, before any weights are loaded.

Images become uint8 RGB (H, W, 3), audio float32 mono (N,). Imports no torch.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_SUFFIXES
from common.errors import InputError, MissingFileError
from common.media.audio import read_audio
from common.media.downmix import LONGEST_AUDIO
from common.media.images import read_image_file
from common.media.open import MediaError, audio_stream, open_media
from common.media.video import read_first_image
from common.runs import sha256_file
from omniavatar.config import GenerateConfig, Request
from omniavatar.video.isolated import decode

SMALLEST_SIDE = 32
LARGEST_SIDE = 4096  # more pixels than any size of the model can use; a larger image is averaged down on reading
LARGEST_RATIO = 8.0
AAC_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


class AudioInput(NamedTuple):
    """`wave` (N,) at 16 kHz conditions the model, `track` (M,) at `rate` is the audio track of the finished video."""

    wave: np.ndarray
    track: np.ndarray
    rate: int


class Inputs(NamedTuple):
    """A request as arrays; `image` is None where the base has to draw it. `sha256` of the files as they were read, by
    "image" and "audio"."""

    image: np.ndarray | None
    audio: AudioInput
    prompt: str
    sha256: dict[str, str]


def read_request(request: Request) -> Inputs:
    """Read and check everything a request names. Raises InputError, FileNotFoundError, MediaError."""
    if request.image is None and not request.prompt.strip():
        raise InputError("Neither an image nor a prompt was given; give --image, or --prompt to have a portrait drawn.")
    if request.audio is None and not request.seconds:
        raise InputError("No audio was given; give --audio, or --seconds for a silent video of that length.")
    if request.audio is not None and request.seconds:
        raise InputError(f"Both audio and seconds={request.seconds:g} were given; the audio decides the length.")
    hashes: dict[str, str] = {}
    image, audio = None, silent_audio(request.seconds) if request.audio is None else None
    if request.image is not None:
        image, hashes["image"] = decode_image(request.image)
    if audio is None:
        audio, hashes["audio"] = decode_audio(request.audio or "")
    return Inputs(image, audio, request.prompt, hashes)


def decode_image(path: Path | str) -> tuple[np.ndarray, str]:
    """`read_image` in a process that may crash, and the file's sha256. Raises what that and `isolated.decode` raise."""
    _check_file("image", path)
    image, digest = decode(f"{__name__}:{_image_and_hash.__name__}", path)
    return image, digest


def decode_audio(path: Path | str) -> tuple[AudioInput, str]:
    """`read_audio_input` in a process that may crash, and the file's sha256. Raises what that and `isolated.decode`
    raise."""
    _check_file("audio", path)
    *audio, digest = decode(f"{__name__}:{_audio_and_hash.__name__}", path)
    return AudioInput(*audio), digest


def _check_file(kind: str, path: Path | str) -> None:
    if not Path(path).is_file():
        what = f"{path} is no ordinary file" if Path(path).exists() else f"There is no {kind} at {path}"
        raise MissingFileError(f"{what}; give the path of an existing {kind} file.")


def _image_and_hash(path: str) -> tuple[np.ndarray, str]:
    with _unchanged(path):
        return read_image(path), sha256_file(path)


def _audio_and_hash(path: str) -> tuple[np.ndarray, np.ndarray, int, str]:
    with _unchanged(path):
        return *read_audio_input(path), sha256_file(path)


@contextmanager
def _unchanged(path: str) -> Iterator[None]:
    """Raises InputError when the file was replaced meanwhile: what was hashed would not be what was decoded."""
    before = os.stat(path)
    yield
    after = os.stat(path)
    if any(getattr(before, field) != getattr(after, field) for field in ("st_ino", "st_size", "st_mtime_ns")):
        raise InputError(f"{path} was written to while it was read; run the command again when it is complete.")


def read_image(path: Path | str) -> np.ndarray:
    """An image file, upright and in sRGB, as uint8 (H, W, 3); of a GIF or a video the first frame.

    Converted as by `common.media.images.image_to_rgb`; sides beyond 4096 px are averaged down. Raises
    FileNotFoundError, InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no image at {path}; give an image file (JPEG, PNG, ...) of a portrait.")
    readers: list[Callable[[Path], np.ndarray]] = [partial(read_image_file, longest=LARGEST_SIDE), read_first_image]
    if path.suffix.lower() in VIDEO_SUFFIXES:
        readers.reverse()
    try:
        pixels = readers[0](path)
    except (InputError, MediaError) as error:
        try:  # what it is, whatever its suffix says
            pixels = readers[1](path)
        except (InputError, MediaError):
            raise error from None
    return check_sides(pixels, path)


def check_sides(image: np.ndarray, name: Path | str) -> np.ndarray:
    """Returns `image` (H, W, 3). Raises InputError for one too small or too narrow to be a portrait."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"{name} is {width}x{height} px; expected at least {SMALLEST_SIDE} px on each side.")
    if max(height, width) > LARGEST_RATIO * min(height, width):
        raise InputError(f"{name} is {width}x{height} px, a strip; crop it to the person.")
    return image


def read_audio_input(path: Path | str) -> AudioInput:
    """The audio of any file ffmpeg reads (wav, mp3, flac, m4a, mp4, ...), mixed to mono.

    The track keeps the file's sample rate where AAC has it, else it is 48 kHz. Raises FileNotFoundError, InputError and
    common.media.video.MediaError.
    """
    with open_media(path) as container:
        stream = audio_stream(container)
        rate = stream.rate if stream is not None and stream.rate in AAC_RATES else AAC_RATES[-1]
    wave = read_audio(path, whole=True)
    if not len(wave):
        raise InputError(f"{path} holds 0 s of audio; give a file with audio in it.")
    if not np.isfinite(wave).all():
        raise InputError(f"{path} holds values that are no numbers; convert it to 16 bit.")
    return AudioInput(wave, wave if rate == AUDIO_RATE else read_audio(path, rate, whole=True), rate)


def silent_audio(seconds: float) -> AudioInput:
    """`seconds` of silence: the model gets zeros, as where training drops the audio. Raises InputError."""
    if not 1 / 25 <= seconds <= LONGEST_AUDIO:
        raise InputError(f"seconds is {seconds:g}; expected 0.04 (one frame) to {LONGEST_AUDIO:g}.")
    wave = np.zeros(round(seconds * 25) * SAMPLES_PER_FRAME, np.float32)
    return AudioInput(wave, wave, AUDIO_RATE)


def with_lead_in(wave: np.ndarray, config: GenerateConfig, rate: int = AUDIO_RATE) -> np.ndarray:
    """The audio (N,) after the config's `lead_in` seconds of silence."""
    return np.pad(wave, (round(config.lead_in * rate), 0)) if wave.ndim == 1 else wave
