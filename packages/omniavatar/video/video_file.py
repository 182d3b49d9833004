"""The finished video as a file: pictures and sound from time 0 on, and what it was made with, as JSON beside it."""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.constants import AUDIO_RATE, FPS
from common.media.write import write_video
from common.runs import write_json
from omniavatar.config import GenerateConfig
from omniavatar.video.scene import with_lead_in

LIBRARIES = ("torch", "diffusers", "transformers", "av", "omniavatar-stack")


def write_avatar_video(
    path: Path | str,
    frames: np.ndarray | Iterable[np.ndarray],
    wave: np.ndarray,
    rate: int = AUDIO_RATE,
    count: int | None = None,
) -> None:
    """Write generated frames with their sound, both from time 0, as H.264 and AAC: at 16 kHz frame i shows samples
    640 i to 640 (i + 1).

    The sound (N,) at `rate` is cut or padded with silence to the picture's length: `count` frames where they come one
    by one. Errors as of common.media.video.write_video.
    """
    if count is None:
        count = len(frames) if isinstance(frames, np.ndarray) else len(frames := list(frames))
    samples = round(count * rate / FPS)
    write_video(path, frames, np.pad(wave[:samples], (0, max(0, samples - len(wave)))), audio_rate=rate)


def sound_track(wave: np.ndarray, config: GenerateConfig, rate: int = AUDIO_RATE) -> np.ndarray:
    """The sound (N,) as a video of this config plays it: behind the lead-in, and behind the reference frame if that is
    kept."""
    return np.pad(with_lead_in(wave, config, rate), (round(rate / FPS) if config.keep_reference else 0, 0))


def write_settings(path: Path | str, config: GenerateConfig, facts: Mapping[str, Any]) -> None:
    """Write `<video>.json` beside the video at `path`: `facts`, every setting, and the versions of what made it."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    made_by = {"settings": asdict(config), "versions": {"python": platform.python_version(), **versions}}
    write_json(Path(path).with_suffix(".json"), {**facts, **made_by, "fps": int(FPS)})
