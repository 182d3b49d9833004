"""Encoding of one clip: a pure function from frames, audio and caption to the tensors of a sample.

Shapes: N video frames, F = 4 (T - 1) + 1 of them kept, T latent frames, h w latent height and width, K references,
n caption tokens, D text width, C - D stored audio width. Clips are encoded one by one: batched, the last bits of a clip
would depend on its neighbours, and the bytes of a shard on which clips remained when a job was killed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.process.imports import large_imports

with large_imports():
    from omniavatar.encoders.vae import WanVAE, load_vae

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from common.constants import SAMPLES_PER_FRAME
from common.errors import MissingFileError
from common.hashes import remembered_hash
from latents.config import AudioKind
from latents.constants import Constants, to_samples, to_wave
from omniavatar.encoders.audio import AudioEncoder, drop_duplicate, load_audio_encoder
from omniavatar.encoders.text import TextEncoder, load_text_encoder, stream_text_encoder
from omniavatar.video.images import cover

ENCODER_ROLES = ("vae", "text_encoder", "tokenizer", "audio_encoder")


@dataclass(frozen=True)
class Encoders:
    """The frozen models, the number of reference frames per clip, and the kind of audio that is stored."""

    vae: WanVAE
    text: TextEncoder
    audio: AudioEncoder
    references: int = 4
    stored_audio: AudioKind = "features"


def load_encoders(
    models: Mapping[str, Path],
    references: int = 4,
    stored_audio: AudioKind = "features",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Encoders:
    """Load the encoders of a recipe's `models` section; wav2vec2 is always float32. Raises FileNotFoundError,
    CheckpointError of the loaders."""
    return Encoders(
        vae=load_vae(models["vae"], dtype, device).eval(),
        text=load_text_encoder(models["text_encoder"], models["tokenizer"], dtype, device),
        audio=load_audio_encoder(models["audio_encoder"], device),
        references=references,
        stored_audio=stored_audio,
    )


def make_constants(models: Mapping[str, Path], stored_audio: AudioKind, audio_encoder: str) -> Constants:
    """Constants of these encoders for training; `audio_encoder` is the content hash. Computed on the CPU in float32, so
    the bytes are always the same. Raises what `load_encoders` raises."""
    text = load_text_encoder(models["text_encoder"], models["tokenizer"], mapped=True)
    stream_text_encoder(text, torch.device("cpu"), torch.float32)  # umT5-XXL whole takes 23 GB
    width = load_audio_encoder(models["audio_encoder"], "meta").feature_dim
    return Constants(text.encode([""])[0], text.text_length, width, stored_audio, audio_encoder)


def encoder_hashes(models: Mapping[str, Path], memory: Path) -> dict[str, str]:
    """Content hash of each encoder, by role; `memory` is that of `remembered_hash`. Raises FileNotFoundError naming an
    absent role."""
    missing = [role for role in ENCODER_ROLES if not models.get(role) or not Path(models[role]).exists()]
    if missing:
        raise MissingFileError(
            f"models.{missing[0]} is '{models.get(missing[0], '')}', which does not exist; latents need the roles "
            f"{', '.join(ENCODER_ROLES)}"
        )
    return {role: remembered_hash(Path(models[role]), memory) for role in ENCODER_ROLES}


@torch.inference_mode()
def encode_clip(
    encoders: Encoders, frames: np.ndarray, wave: np.ndarray, caption: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of one sample.

    frames (N, H, W, 3) uint8 RGB at 25 fps in the size of their bucket, wave (samples,) float32 at 16 kHz from the
    first frame on. Returns float16 latents (16, T, h, w), references (K, 16, h, w), text (n, D), audio (F, C - D) or
    the int16 waveform (640 N,). The clip is cut to 4n + 1 frames from its start. Audio is encoded over all N frames and
    then cut, so a waveform is stored for all of them.
    """
    kept = (len(frames) - 1) // 4 * 4 + 1
    video = to_video(frames[:kept], encoders.vae.mean.device)
    encoded = {
        "latents": encoders.vae.encode(video)[0],
        "references": encode_references(encoders, video),
        "text": encoders.text.encode([caption])[0],
    }
    samples = to_samples(wave, len(frames) * SAMPLES_PER_FRAME)
    if encoders.stored_audio == "features":
        encoded["audio"] = encode_audio(encoders.audio, samples)[:kept]
    tensors = {name: tensor.cpu().numpy().astype(np.float16) for name, tensor in encoded.items()}
    meta = {"caption": caption, "frames": kept, "height": frames.shape[1], "width": frames.shape[2], "fps": 25}
    return {"audio": samples} | tensors, meta


def to_video(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(F, H, W, 3) uint8 RGB -> (1, 3, F, H, W) float32 in [-1, 1] on `device`."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def encode_references(encoders: Encoders, video: Tensor) -> Tensor:
    """Latents (K, 16, h, w) of K single frames spread over video (1, 3, F, H, W), the first frame first."""
    chosen = np.linspace(0, video.shape[2] - 1, encoders.references).round().astype(int)
    images = video[0, :, chosen].transpose(0, 1)[:, :, None]  # (K, 3, 1, H, W)
    return encoders.vae.encode(images)[:, :, 0]


def encode_audio(encoder: AudioEncoder, samples: np.ndarray) -> Tensor:
    """wav2vec2 states (N, C - D) of a whole clip of 640 N int16 samples, without the layer that is stored twice.

    As long as the video, so that nothing is resampled; of 16 bits, so that a stored waveform gives the same states.
    """
    return drop_duplicate(encoder.encode(to_wave(torch.from_numpy(samples))), encoder.hidden_size)


def fit_frames(frames: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
    """Resize frames (N, H, W, 3) uint8 until they cover the bucket (height, width), then crop its centre."""
    height, width = frames.shape[1:3]
    if (height, width) == bucket:
        return frames
    size, (top, side) = cover(height, width, bucket)
    fitted = np.empty((len(frames), *bucket, 3), np.uint8)
    for i, frame in enumerate(frames):
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        image = interpolate(image, size, mode="bilinear", antialias=True)[0].round().clamp(0, 255).byte()
        fitted[i] = image[:, top : top + bucket[0], side : side + bucket[1]].permute(1, 2, 0).numpy()
    return fitted
