"""Teacher videos: a first system animates one picture with a voice; each clip is kept with seed and settings.

`TEACHERS` are those that a recipe may name.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audioavatar.distil.teacher import ClipTeacher
from common.constants import SAMPLES_PER_FRAME
from common.errors import InputError
from common.runs import fingerprint
from training.audioavatar.config import AvatarTrainConfig
from training.audioavatar.stage_file import read_tensors, save_tensors


@dataclass(frozen=True)
class TeacherClip:
    """`frames` (T, H, W, 3) uint8 RGB at 25 per second, `wave` (T * 640,) float32 at 16 kHz, the audio it follows."""

    frames: torch.Tensor
    wave: torch.Tensor


TEACHERS = {
    "omniavatar": "training.audioavatar.omniavatar_teacher:OmniAvatarTeacher",
    "drawn": "training.audioavatar.drawn_teacher:DrawnTeacher",
}
"""Name -> class of the teacher, named, not imported: one that is not used need not be installed."""


def load_teacher(name: str, weights: Mapping[str, Path], recipe: AvatarTrainConfig) -> ClipTeacher:
    """The teacher of a name, with its settings of the recipe. Raises InputError for an unknown one, and what its
    `from_recipe` raises."""
    if name not in TEACHERS:
        raise InputError(f"avatar.teachers names {name}; the teachers are {', '.join(TEACHERS)}.")
    module, _, kind = TEACHERS[name].partition(":")
    teacher: ClipTeacher = getattr(import_module(module), kind).from_recipe(weights, recipe, name)
    return teacher


def clip_key(made_by: Any, image: np.ndarray, audio: np.ndarray) -> str:
    """What a clip is made of: `made_by` (teacher, settings, weights, prompt, seed), picture and voice."""
    return fingerprint([made_by, *(hashlib.sha256(array.tobytes()).hexdigest() for array in (image, audio))])


def save_clip(path: Path, frames: np.ndarray, audio: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write a clip, whole or not at all, with what it was made of as `about`."""
    wave = audio[: SAMPLES_PER_FRAME * len(frames)]
    save_tensors(path, {"frames": torch.from_numpy(frames), "wave": torch.from_numpy(wave)}, about)


def read_clip(path: Path) -> TeacherClip:
    """A clip that `save_clip` wrote."""
    return TeacherClip(**read_tensors(path))
