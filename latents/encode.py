"""One clip through the frozen encoders: a pure function from picture, sound and caption to the tensors of a sample.

Shapes: N video frames, F = 4 (T - 1) + 1 of them kept, T latent frames, h w latent height and width, K references,
n caption tokens, D text width, C - D stored audio width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from common.runs import hash_path
from latents.constants import Constants
from omniavatar.audio_encoder import SAMPLES_PER_FRAME, AudioEncoder, drop_duplicate, load_audio_encoder
from omniavatar.text_encoder import TextEncoder, load_text_encoder
from omniavatar.vae import WanVAE, load_vae

ENCODER_ROLES = ("vae", "text_encoder", "tokenizer", "audio_encoder")


@dataclass(frozen=True)
class Encoders:
    """The frozen models, and how many reference frames of a clip are kept."""

    vae: WanVAE
    text: TextEncoder
    audio: AudioEncoder
    references: int = 4

    def constants(self) -> Constants:
        """What training must know about these encoders."""
        return Constants(self.text.encode([""])[0], self.text.text_length, self.audio.feature_dim)


def load_encoders(models: Mapping[str, Path], references: int = 4) -> Encoders:
    """Load the encoders of a recipe's `models` section. Raises FileNotFoundError, CheckpointError of the loaders."""
    return Encoders(
        vae=load_vae(models["vae"]).eval(),
        text=load_text_encoder(models["text_encoder"], models["tokenizer"]),
        audio=load_audio_encoder(models["audio_encoder"]),
        references=references,
    )


def encoder_hashes(models: Mapping[str, Path]) -> dict[str, str]:
    """Content hash of each encoder, by role. Raises FileNotFoundError naming the role that is absent."""
    missing = [role for role in ENCODER_ROLES if not models.get(role) or not Path(models[role]).exists()]
    if missing:
        raise FileNotFoundError(
            f"models.{missing[0]} is '{models.get(missing[0], '')}', which does not exist; latents need the roles "
            f"{', '.join(ENCODER_ROLES)}"
        )
    return {role: hash_path(models[role]) for role in ENCODER_ROLES}


@torch.inference_mode()
def encode_clip(
    encoders: Encoders, frames: np.ndarray, wave: np.ndarray, caption: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of one sample.

    frames (N, H, W, 3) uint8 RGB at 25 fps in the size of their bucket, wave (samples,) float32 at 16 kHz from the
    first frame on. Returns float16 latents (16, T, h, w), references (K, 16, h, w), text (n, D), audio (F, C - D).
    The clip is cut to 4n + 1 frames from its start; the sound is encoded over all N frames before it is cut.
    """
    kept = (len(frames) - 1) // 4 * 4 + 1
    video = to_video(frames[:kept])
    tensors = {
        "latents": encoders.vae.encode(video)[0],
        "references": encode_references(encoders, video),
        "text": encoders.text.encode([caption])[0],
        "audio": encode_audio(encoders.audio, wave, len(frames))[:kept],
    }
    meta = {"caption": caption, "frames": kept, "height": frames.shape[1], "width": frames.shape[2], "fps": 25}
    return {name: tensor.cpu().numpy().astype(np.float16) for name, tensor in tensors.items()}, meta


def to_video(frames: np.ndarray) -> Tensor:
    """(F, H, W, 3) uint8 RGB -> (1, 3, F, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def encode_references(encoders: Encoders, video: Tensor) -> Tensor:
    """Latents (K, 16, h, w) of K single frames spread over video (1, 3, F, H, W), the first frame first."""
    chosen = np.linspace(0, video.shape[2] - 1, encoders.references).round().astype(int)
    pictures = video[0, :, chosen].transpose(0, 1)[:, :, None]  # (K, 3, 1, H, W)
    return encoders.vae.encode(pictures)[:, :, 0]


def encode_audio(encoder: AudioEncoder, wave: np.ndarray, frames: int) -> Tensor:
    """wav2vec2 states (frames, C - D) of the whole clip, without the layer that is stored twice."""
    samples = frames * SAMPLES_PER_FRAME
    # Exactly as long as the picture, so that nothing is stretched.
    exact = np.pad(wave[:samples], (0, max(0, samples - len(wave))))
    return drop_duplicate(encoder.encode(exact), encoder.hidden_size)


def nearest_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of the nearest shape, then of the nearest size (spec omniavatar 3.3: nearest h/w ratio)."""

    def distance(bucket: tuple[int, int]) -> tuple[float, float]:
        shape = abs(log(bucket[0] / bucket[1]) - log(height / width))
        return round(shape, 6), abs(log(bucket[0] * bucket[1]) - log(height * width))

    return min(buckets, key=distance)


def fit_frames(frames: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
    """Resize frames (N, H, W, 3) uint8 until they cover the bucket (height, width), then crop its centre."""
    height, width = frames.shape[1:3]
    if (height, width) == bucket:
        return frames
    scale = max(bucket[0] / height, bucket[1] / width)
    size = (max(round(height * scale), bucket[0]), max(round(width * scale), bucket[1]))
    top, left = (size[0] - bucket[0]) // 2, (size[1] - bucket[1]) // 2
    fitted = np.empty((len(frames), *bucket, 3), np.uint8)
    for i, frame in enumerate(frames):
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        picture = interpolate(picture, size, mode="bilinear", antialias=True)[0].round().clamp(0, 255).byte()
        fitted[i] = picture[:, top : top + bucket[0], left : left + bucket[1]].permute(1, 2, 0).numpy()
    return fitted
