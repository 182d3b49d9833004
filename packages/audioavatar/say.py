"""The avatar in a few lines: built from a picture, then it says any audio, seen from any side within reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audioavatar.avatar import Avatar, load_avatar
from audioavatar.canonical.face import largest_face
from audioavatar.canonical.relief import relief_avatar
from audioavatar.config import ReliefConfig, SayConfig
from audioavatar.driven.model import MotionModel, load_motion_model
from audioavatar.frames import FrameRenderer
from audioavatar.live import AvatarStream, MotionStream
from audioavatar.motion import Motion, concatenate
from common.constants import AUDIO_RATE
from common.errors import InputError
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from omniavatar.video.inputs import AudioInput, decode_audio, decode_image
from omniavatar.video.video_file import settings_mark, write_avatar_video
from perception.faces.detect import load_face_detector
from perception.packaged import packaged_weights

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
        return FrameRenderer(self.avatar, self.config).frames(self.motion)

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
        """Audio (mono 16 kHz array, or file) -> what the avatar does. Raises InputError for audio without a sample."""
        if isinstance(audio, np.ndarray):
            wave = audio.astype(np.float32)
            spoken = AudioInput(wave, wave, AUDIO_RATE)
        else:
            spoken = decode_audio(audio)[0]
        if not len(spoken.wave):
            raise InputError("The audio is empty; expected mono samples at 16 kHz.")
        stream = MotionStream(self.avatar, self.motion, self.encoder, config)
        stream.take(spoken.wave)
        return Talk(self.avatar, concatenate([*stream.blocks(), *stream.finish()]), spoken, config)

    def stream(self, config: SayConfig | None = None, *, seed: int = 0) -> AvatarStream:
        """The same for audio that arrives piece by piece: the frames of `say`, 160 ms after their audio.

        `seed` where no config has one.
        """
        return AvatarStream(self.avatar, self.motion, self.encoder, config or SayConfig(seed=seed))


def build(image: np.ndarray | Path | str, face_detector: Path | str | None, config: ReliefConfig) -> Avatar:
    """The canonical avatar of a portrait: RGB array or file. Without a face detector's path, the one that a package
    brings along (its keypoints tell where the mouth ends), or else OpenCV's cascade. Raises InputError,
    FaceDetectorError."""
    pixels = image if isinstance(image, np.ndarray) else decode_image(image)[0]
    detector = load_face_detector(face_detector or packaged_weights().get("face_detector"))
    return relief_avatar(pixels, largest_face(pixels, detector), config)
