"""Teacher videos: a first system animates one picture with a voice; each clip is kept with seed and settings.

`TEACHERS` are those that a recipe may name.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from audioavatar.config import TeacherConfig
from common.constants import SAMPLES_PER_FRAME
from common.runs import fingerprint
from training.audioavatar.omniavatar_teacher import OmniAvatarTeacher
from training.audioavatar.stage_file import read_tensors, save_tensors


@dataclass(frozen=True)
class TeacherClip:
    """`frames` (T, H, W, 3) uint8 RGB at 25 per second, `wave` (T * 640,) float32 at 16 kHz, the audio it follows."""

    frames: torch.Tensor
    wave: torch.Tensor


class Animator(Protocol):
    """Anything that animates a picture with a voice."""

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """RGB image uint8 and mono 16 kHz audio -> frames (T, H, W, 3) uint8 at 25 per second."""
        ...

    def settings(self) -> dict[str, object]:
        """What its videos depend on besides the arguments: model and sampling."""
        ...


TEACHERS: dict[str, Callable[[Mapping[str, Path], TeacherConfig], Animator]] = {
    "omniavatar": OmniAvatarTeacher.from_pretrained,
}
"""Name -> what loads the teacher from the paths of the roles."""


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
