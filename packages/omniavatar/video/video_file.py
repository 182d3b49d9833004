"""The finished video as an mp4 with audio and marks, and a JSON file beside it with settings and versions."""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.constants import AUDIO_RATE, FPS
from common.media.marks import XMP_BOX, XMP_PACKET, mark_tags
from common.media.write import write_video
from common.runs import atomic_write, write_json
from omniavatar.config import GenerateConfig
from omniavatar.video.inputs import with_lead_in

LIBRARIES = ("torch", "diffusers", "transformers", "av", "omniavatar-stack")


def write_avatar_video(
    path: Path | str,
    frames: np.ndarray | Iterable[np.ndarray],
    wave: np.ndarray,
    rate: int = AUDIO_RATE,
    count: int | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Write generated frames with their audio, both from time 0, as H.264 and AAC: at 16 kHz frame i belongs to
    samples 640 i to 640 (i + 1).

    The audio (N,) at `rate` is cut or padded with silence to the length of the video: `count` frames where they are an
    iterator. The file is marked as generated, with `made_with` (see `settings_mark`). Raises what
    common.media.write.write_video raises.
    """
    if count is None:
        count = len(frames) if isinstance(frames, np.ndarray) else len(frames := list(frames))
    samples = round(count * rate / FPS)
    track = np.pad(wave[:samples], (0, max(0, samples - len(wave))))
    tags = mark_tags(made_with or settings_mark())
    write_video(path, frames, track, audio_rate=rate, tags=tags, boxes=XMP_BOX)


def settings_mark(
    config: GenerateConfig | None = None, preset: str = "", models: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a generated file says of its making, no prompt and no path: software, version, preset, seed, steps, and the
    first 16 digits of the hashes of `models` by role."""
    mark: dict[str, Any] = {"software": "omniavatar-stack", "version": importlib.metadata.version("omniavatar-stack")}
    if config is not None:
        mark |= {"seed": config.seed, "steps": config.steps}
    if preset:
        mark["preset"] = preset
    if models:
        mark["models"] = {role: digest[:16] for role, digest in models.items()}
    return mark


def audio_track(wave: np.ndarray, config: GenerateConfig, rate: int = AUDIO_RATE) -> np.ndarray:
    """The audio track of a video of this config: `wave` (N,) after the lead-in, and after the reference frame if that
    is kept."""
    return np.pad(with_lead_in(wave, config, rate), (round(rate / FPS) if config.keep_reference else 0, 0))


def write_portrait(path: Path, image: np.ndarray) -> None:
    """Write a generated image (H, W, 3) as PNG, marked as such."""
    mark = PngInfo()
    mark.add_itxt("XML:com.adobe.xmp", XMP_PACKET)
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, pnginfo=mark)


def write_settings(path: Path | str, config: GenerateConfig, facts: Mapping[str, Any]) -> None:
    """Write `<video>.json` beside the video at `path`: `facts`, every setting, and the versions of the libraries."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    made_by = {"settings": asdict(config), "versions": {"python": platform.python_version(), **versions}}
    write_json(Path(path).with_suffix(".json"), {**facts, **made_by, "fps": int(FPS)})
