"""Teacher videos: the first system animates one picture with many voices; each clip is kept with seed and settings."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audioavatar.config import TeacherConfig
from common.runs import atomic_write
from omniavatar.pipeline import OmniAvatarPipeline


@dataclass(frozen=True)
class TeacherClip:
    """`frames` (T, H, W, 3) uint8 RGB at 25 per second, `wave` (T * 640,) float32 at 16 kHz, the audio it follows."""

    frames: torch.Tensor
    wave: torch.Tensor


class VideoTeacher(Protocol):
    """Anything that animates a picture with a voice."""

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """RGB image uint8 and mono 16 kHz audio -> frames (T, H, W, 3) uint8 at 25 per second."""
        ...

    def settings(self) -> dict[str, object]:
        """What its videos depend on besides the arguments: model and sampling."""
        ...


class OmniAvatarTeacher:
    """Our own first system, through its public pipeline."""

    def __init__(self, pipeline: OmniAvatarPipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def from_pretrained(cls, weights: dict[str, Path], config: TeacherConfig = TeacherConfig()) -> "OmniAvatarTeacher":
        """Load the roles of generation; raises what `OmniAvatarPipeline.from_pretrained` raises."""
        settings: dict[str, Any] = {
            "longest_side": config.longest_side, "chunk_frames": config.chunk_frames, "shift": config.shift,
            "steps": config.steps, "text_guidance": config.text_guidance, "audio_guidance": config.audio_guidance,
        }  # fmt: skip
        return cls(OmniAvatarPipeline.from_pretrained(weights, **settings))

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """As of VideoTeacher."""
        return self.pipeline(image, audio, prompt, seed=seed).frames

    def settings(self) -> dict[str, object]:
        """As of VideoTeacher."""
        return {"teacher": "omniavatar", **asdict(self.pipeline.config)}


def teach(
    teacher: VideoTeacher,
    image: np.ndarray,
    voices: Iterable[tuple[str, np.ndarray, int]],
    prompt: str,
    folder: Path,
) -> list[Path]:
    """A clip of the picture for each voice (name, mono 16 kHz audio, seed) -> `folder`/<name>.safetensors.

    Clips that are there from the same teacher, settings and seed stay: a killed run goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, audio, seed in voices:
        path = folder / f"{name}.safetensors"
        about = json.dumps(
            {"settings": teacher.settings(), "prompt": prompt, "seed": seed}, sort_keys=True, default=str
        )
        if not path.is_file() or _about(path) != about:
            frames = teacher.generate(image, audio, prompt, seed)
            tensors = {"frames": torch.from_numpy(frames), "wave": torch.from_numpy(audio[: 640 * len(frames)])}
            with atomic_write(path) as temporary:
                save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"about": about})
        paths.append(path)
    return paths


def _about(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("about"))


def read_clip(path: Path) -> TeacherClip:
    """A clip that `teach` wrote."""
    with safe_open(path, "pt") as file:
        return TeacherClip(file.get_tensor("frames"), file.get_tensor("wave"))
