"""Constants shared by all samples of a shard folder, in one small file beside the shards, and what names a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.errors import InputError, MissingFileError, damaged
from common.runs import atomic_write, fingerprint, hash_path
from latents.config import AudioKind

if TYPE_CHECKING:  # takes seconds, which a forecast from widths alone does without
    import torch
    from torch import Tensor

    from omniavatar.encoders.audio import AudioEncoder

FILE_NAME = "constants.safetensors"
CONTENTS = "contents.json"  # description of the shards, written last: it marks the folder as finished
DIMENSIONS = {"empty_text": 2, "text_length": 0, "audio_dim": 0, "waveform": 0, "audio_encoder": 1}
FULL_SCALE = 32768  # of a stored waveform: int16


@dataclass(frozen=True)
class Constants:
    """Embedding (n, D) of the empty caption, the length captions are padded to, width C of the model's audio input;
    the kind of "audio" in the samples, and the content hash of its audio encoder."""

    empty_text: "Tensor"
    text_length: int
    audio_dim: int
    audio: AudioKind = "features"
    audio_encoder: str = ""

    def load_encoder(self, path: Path | None, device: "torch.device | str" = "cpu") -> "AudioEncoder | None":
        """The audio encoder that `model_audio` needs; None when features are stored.

        Raises InputError without a path, and for another encoder than these shards were made with; what
        `load_audio_encoder` raises.
        """
        if self.audio == "features":
            return None
        if path is None:
            raise InputError("These shards hold waveforms; set data.audio_encoder to the encoder they were made for.")
        if (found := hash_path(path)) != self.audio_encoder:
            raise InputError(
                f"{path} has the content hash {found[:12]}, the audio encoder of these shards {self.audio_encoder[:12]}"
                "; use that one, or run the latents job with this one (which encodes no frames again)"
            )
        from omniavatar.encoders.audio import load_audio_encoder

        return load_audio_encoder(path, device)

    def model_audio(
        self, stored: "Tensor", encoder: "AudioEncoder | None" = None, frames: int | None = None
    ) -> "Tensor":
        """Stored audio as model input: (F, C) float32, of the first `frames` frames of the clip or all.

        To features (F, C - D) the duplicated layer is added again. A waveform (samples,) is encoded whole and then cut,
        so that both give the same. Raises InputError for a waveform without an encoder.
        """
        from omniavatar.encoders.audio import restore_duplicate

        if self.audio == "features":
            return restore_duplicate(stored[:frames].float(), self.audio_dim)
        if encoder is None:
            raise InputError(
                "These shards hold waveforms, which need the audio encoder; pass Constants.load_encoder's."
            )
        return encoder.encode(to_wave(stored))[:frames].cpu()


def to_samples(wave: np.ndarray, count: int) -> np.ndarray:
    """Waveform (n,) float32 in [-1, 1] -> `count` int16 samples, cut or padded with silence."""
    exact = np.pad(wave[:count], (0, max(0, count - len(wave))))
    return np.clip(np.rint(exact * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def to_wave(samples: "Tensor") -> "Tensor":
    """The inverse of `to_samples`: float32 in [-1, 1]."""
    return samples.float() / FULL_SCALE


def write_constants(folder: Path, constants: Constants) -> None:
    """Write the file into a shard folder."""
    tensors = {
        "empty_text": constants.empty_text.cpu().numpy().astype(np.float16),
        "text_length": np.array(constants.text_length),
        "audio_dim": np.array(constants.audio_dim),
        "waveform": np.array(constants.audio == "waveform"),
        "audio_encoder": np.frombuffer(bytes.fromhex(constants.audio_encoder), np.uint8),
    }
    with atomic_write(folder / FILE_NAME) as path:
        save_file(tensors, path)


def stored_widths(folder: Path) -> tuple[int, int]:
    """Text length and audio width of a shard folder, without torch. Raises what `read_constants` raises."""
    tensors = _read(folder)
    return int(tensors["text_length"]), int(tensors["audio_dim"])


def read_constants(folder: Path) -> Constants:
    """Read the file of a shard folder. Raises FileNotFoundError when the folder holds no finished shards,
    DamagedFileError."""
    import torch

    tensors = _read(folder)
    return Constants(
        empty_text=torch.from_numpy(tensors["empty_text"].astype(np.float32)),
        text_length=int(tensors["text_length"]),
        audio_dim=int(tensors["audio_dim"]),
        audio="waveform" if tensors["waveform"] else "features",
        audio_encoder=tensors["audio_encoder"].tobytes().hex(),
    )


def cached(cache: Path, clip_id: str) -> Path:
    """Cache file of the tensors of one clip."""
    return cache / f"{clip_id}.safetensors"


def clips_digest(clips: Sequence[Mapping[str, Any]]) -> str:
    """Digest of clips, sorted by clip_id, and all that their samples depend on: 16 hexadecimal digits."""
    fields = ("clip_id", "video_id", "split", "caption", "sha256")
    return fingerprint([[str(clip.get(name)) for name in fields] for clip in clips])


def _read(folder: Path) -> dict[str, np.ndarray]:
    path = folder / FILE_NAME
    if not path.exists():
        raise MissingFileError(f"{path} is missing; {folder} holds no finished shards: run the latents stage first")
    if path.is_dir():
        raise damaged(path, "expected a file", "is a folder")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged(path, error) from error
    if wrong := [name for name, dims in DIMENSIONS.items() if name not in tensors or tensors[name].ndim != dims]:
        raise damaged(path, f"'{wrong[0]}' is not there, or not what it was written as")
    rows, width = tensors["empty_text"].shape
    length, audio = int(tensors["text_length"]), int(tensors["audio_dim"])
    if not 1 <= rows <= length or width < 1 or audio < 1 or tensors["audio_encoder"].nbytes not in (0, 32):
        raise damaged(path, f"a text of {rows} x {width}, padded to {length}, and audio of width {audio}")
    if not np.isfinite(tensors["empty_text"]).all():
        raise damaged(path, "'empty_text' is not finite")
    return tensors
