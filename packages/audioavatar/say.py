"""The avatar in a few lines: built from a picture, then it says any audio, seen from any side within reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from audioavatar.avatar import Avatar, load_avatar
from audioavatar.canonical.face import largest_face
from audioavatar.canonical.relief import relief_avatar
from audioavatar.config import RasterConfig, ReliefConfig, SayConfig
from audioavatar.driven.features import audio_features
from audioavatar.driven.model import MotionModel, load_motion_model
from audioavatar.motion import Motion, head_shares, pose
from audioavatar.particles import Particles
from audioavatar.raster.render import render
from common.constants import AUDIO_RATE
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from omniavatar.video.inputs import AudioInput, decode_audio, decode_image
from omniavatar.video.video_file import settings_mark, write_avatar_video
from perception.faces.detect import load_face_detector

SHIPPED_MOTION = Path(__file__).parent / "weights" / "motion.safetensors"


@dataclass(frozen=True)
class Talk:
    """What an avatar says: its `motion`, and the audio track (M,) at `rate` with it."""

    avatar: Avatar
    motion: Motion
    audio: AudioInput
    config: SayConfig

    def __len__(self) -> int:
        return len(self.motion)

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB (H, W, 3), one after the other."""
        return render_frames(self.avatar, self.motion, self.config)

    def save(self, path: Path | str, made_with: Mapping[str, Any] | None = None) -> None:
        """Write an mp4 with the audio, marked as generated. Raises what `write_video` raises."""
        mark = settings_mark() | {"system": "audioavatar", **(made_with or {})}
        write_avatar_video(path, self.frames(), self.audio.track, self.audio.rate, count=len(self), made_with=mark)


class AudioAvatar:
    """An avatar with what drives it. Create one with `from_image` or `load`."""

    def __init__(self, avatar: Avatar, motion: MotionModel, encoder: AudioEncoder | None) -> None:
        self.avatar, self.motion, self.encoder = avatar, motion, encoder

    @classmethod
    def from_image(
        cls,
        image: np.ndarray | Path | str,
        face_detector: Path | str | None,
        audio_encoder: Path | str,
        motion: Path | str = SHIPPED_MOTION,
        config: ReliefConfig = ReliefConfig(),
    ) -> "AudioAvatar":
        """Build from a portrait: RGB array or file. The paths are weights; without a face detector's, OpenCV's cascade.

        Raises InputError for a picture without a face, and what the loaders raise.
        """
        return cls(build(image, face_detector, config), load_motion_model(motion), load_audio_encoder(audio_encoder))

    @classmethod
    def load(cls, folder: Path | str, audio_encoder: Path | str, motion: Path | str = SHIPPED_MOTION) -> "AudioAvatar":
        """Read an avatar that was saved. Raises what the loaders raise."""
        return cls(load_avatar(folder), load_motion_model(motion), load_audio_encoder(audio_encoder))

    def say(self, audio: np.ndarray | Path | str, config: SayConfig = SayConfig()) -> Talk:
        """Audio (mono 16 kHz array, or file) -> what the avatar does."""
        if isinstance(audio, np.ndarray):
            wave = audio.astype(np.float32)
            spoken = AudioInput(wave, wave, AUDIO_RATE)
        else:
            spoken = decode_audio(audio)[0]
        features = audio_features(spoken.wave, self.motion.features, self.encoder)  # type: ignore[arg-type]
        with torch.inference_mode():
            driven = self.motion.drive(self.avatar, features, config.seed)
        motion = Motion(driven.head, config.strength * driven.shift, config.strength * driven.growth)
        return Talk(self.avatar, motion, spoken, config)


def build(image: np.ndarray | Path | str, face_detector: Path | str | None, config: ReliefConfig) -> Avatar:
    """The canonical avatar of a portrait: RGB array or file. Raises InputError, FaceDetectorError."""
    pixels = image if isinstance(image, np.ndarray) else decode_image(image)[0]
    return relief_avatar(pixels, largest_face(pixels, load_face_detector(face_detector)), config)


@torch.inference_mode()
def render_frames(
    avatar: Avatar, motion: Motion, config: SayConfig, raster: RasterConfig = RasterConfig()
) -> Iterator[np.ndarray]:
    """Frames of a motion, uint8 RGB, over the picture's backdrop; the camera swings by `turntable` degrees."""
    camera = avatar.camera.scaled(config.longest_side / max(avatar.size))
    backdrop = F.interpolate(avatar.backdrop.permute(2, 0, 1)[None], (camera.height, camera.width), mode="bilinear")
    backdrop, shares = backdrop[0].permute(1, 2, 0), head_shares(avatar)
    pivot = (float(avatar.mouth.centre[0]), float(avatar.mouth.centre[1]), float(avatar.particles.mean[:, 2].mean()))
    posed = pose(avatar, motion, shares)
    for t in range(len(motion)):
        frame = Particles(
            posed.mean[t], posed.quaternion[t], posed.log_scale[t], posed.opacity, posed.colour, posed.part
        )
        angle = config.turntable * float(np.sin(2 * np.pi * t / config.turn_frames))
        seen = camera.turned(angle, 0.0, pivot) if config.turntable else camera
        image = render(frame, seen, raster, backdrop)[0]
        yield (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
