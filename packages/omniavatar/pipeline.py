"""Pipeline in the style of diffusers: load once, call with image, audio and prompt, save the result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.constants import AUDIO_RATE
from common.errors import InputError, MissingFileError
from common.media.images import image_to_rgb
from omniavatar.config import GENERATION_ROLES, GenerateConfig, LoadConfig
from omniavatar.config import preset as settings_of
from omniavatar.generate import chunk_starts, draw_portrait, generate_video
from omniavatar.models import AvatarModels, ModelPaths, load_models
from omniavatar.planning.job import job_for
from omniavatar.video.inputs import LARGEST_SIDE, AudioInput, check_sides, decode_audio, decode_image, silent_audio
from omniavatar.video.target import check_target
from omniavatar.video.video_file import audio_track, settings_mark, write_avatar_video, write_settings

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", None: "auto"}


@dataclass(frozen=True)
class AvatarOutput:
    """`frames` uint8 RGB (T, H, W, 3) at 25 per second; `wave` (N,) at `rate`, their audio track."""

    frames: np.ndarray
    wave: np.ndarray
    rate: int
    config: GenerateConfig
    prompt: str

    def save(self, path: Path | str) -> None:
        """Write an mp4 with audio, marked as generated, and its settings as JSON beside it.

        Raises what `check_target` raises, before anything is written, and what `write_video` raises.
        """
        check_target(Path(path))
        made_with = settings_mark(self.config)
        write_avatar_video(path, self.frames, self.wave, self.rate, made_with=made_with)
        count, height, width, _ = self.frames.shape
        starts = chunk_starts(count, height, width, self.config)
        write_settings(path, self.config, {"prompt": self.prompt, "frames": len(self.frames), "chunk_starts": starts})


class OmniAvatarPipeline:
    """The loaded networks and the default settings of a call. Create one with `from_pretrained`."""

    def __init__(self, models: AvatarModels, paths: ModelPaths, config: GenerateConfig) -> None:
        self.models, self.paths, self.config = models, paths, config

    @classmethod
    def from_pretrained(
        cls,
        weights: Path | str | Mapping[str, Path | str],
        device: str = "auto",
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> "OmniAvatarPipeline":
        """Load from one folder with a subfolder per role (transformer, vae, text_encoder, tokenizer, audio_encoder,
        adapter), or from a mapping of role to path; other roles in it are ignored.

        `dtype` is torch.float32, torch.bfloat16 or None for the device's; `settings` are fields of GenerateConfig, the
        defaults of every call. Raises ValueError, FileNotFoundError and what `load_models` raises.
        """
        if dtype not in _DTYPES:
            raise InputError(f"dtype is {dtype}; expected torch.float32, torch.bfloat16 or None.")
        paths = _role_paths(weights)
        load = replace(settings.pop("load", LoadConfig()), device=str(device), dtype=_DTYPES[dtype])
        config = GenerateConfig(load=load, **settings)
        return cls(load_models(paths, load, job_for(config)), paths, config)

    def __call__(
        self,
        image: Image.Image | np.ndarray | Path | str | None = None,
        audio: np.ndarray | Path | str | None = None,
        prompt: str = "",
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        audio_guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seconds: float = 0.0,
        preset: str = "",
        **settings: Any,
    ) -> AvatarOutput:
        """Animate `image` (Pillow, uint8 RGB array or file) to `audio` (mono 16 kHz array or file).

        Without an image the base draws one from the prompt; without audio the video has `seconds` of silence. Arguments
        left out are those the pipeline was created with; of `generator` the initial seed is used. `preset` names
        settings that are applied first, `settings` are further fields of GenerateConfig. Raises ValueError for
        unusable input.
        """
        optional = {
            "negative_prompt": negative_prompt,
            "steps": num_inference_steps,
            "text_guidance": guidance_scale,
            "audio_guidance": audio_guidance_scale,
            "seed": generator.initial_seed() if generator is not None and seed is None else seed,
            "height": height,
            "width": width,
        }
        arguments = {name: value for name, value in optional.items() if value is not None}
        preset_settings = settings_of(preset) if preset else {}
        config = replace(self.config, **{**preset_settings, **arguments, **settings})
        wave, track, rate = _read_audio(audio, seconds)
        portrait = self._draw(prompt, config) if image is None else _read_portrait(image)
        frames = generate_video(self.models, portrait, wave, prompt, config)
        return AvatarOutput(frames, audio_track(track, config, rate), rate, config, prompt)

    def _draw(self, prompt: str, config: GenerateConfig) -> np.ndarray:
        if not prompt.strip():
            raise InputError("Neither an image nor a prompt was given; give one of them.")
        job = job_for(config, (64, 64), audio=False, frames=config.portrait_frames)
        base = load_models(replace(self.paths, adapter=None), config.load, job)
        return draw_portrait(base, prompt, config)


def _role_paths(weights: Path | str | Mapping[str, Path | str]) -> ModelPaths:
    if not isinstance(weights, Mapping):
        weights = {role: Path(weights) / role for role in GENERATION_ROLES}
    absent = [role for role in GENERATION_ROLES if role not in weights or not Path(weights[role]).exists()]
    if absent:
        where = weights.get(absent[0], "not named")
        raise MissingFileError(f"There are no weights for {', '.join(absent)} ({where}); give the path of each role.")
    return ModelPaths(**{role: Path(weights[role]) for role in GENERATION_ROLES})


def _read_portrait(image: Image.Image | np.ndarray | Path | str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        return check_sides(image_to_rgb(image, LARGEST_SIDE), "The image")
    return decode_image(image)[0]


def _read_audio(audio: np.ndarray | Path | str | None, seconds: float) -> AudioInput:
    if audio is None:
        return silent_audio(seconds)
    if not isinstance(audio, np.ndarray):
        return decode_audio(audio)[0]
    wave = audio.astype(np.float32)
    return AudioInput(wave, wave, AUDIO_RATE)
