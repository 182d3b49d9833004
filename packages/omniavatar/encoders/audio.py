"""The frozen wav2vec2 at the video's frame rate: one state per 640 samples of 16 kHz audio, 25 per second."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from transformers import Wav2Vec2Config, Wav2Vec2Model

from common.constants import SAMPLES_PER_FRAME
from common.errors import MissingFileError
from common.untrusted.weight_files import Shapes, layers, side
from omniavatar.weights.key_names import audio_to_transformers
from omniavatar.weights.model_configs import build_described, read_config
from omniavatar.weights.tensor_files import fill_module, read_shapes, read_tensors

_TRAINING_ONLY = ("lm_head.", "project_hid.", "project_q.", "quantizer.", "masked_spec_embed")


class AudioEncoder:
    """wav2vec2 whose convolution features are interpolated to 25 per second before its transformer.

    So the transformer runs at half the rate it was trained at, which the released weights require. Always float32.
    Source: OmniAvatar/models/wav2vec.py; the hook gives the same numbers with the stock class.
    """

    def __init__(self, model: Wav2Vec2Model):
        self.model = model.float().eval().requires_grad_(False)
        self.hidden_size: int = model.config.hidden_size
        self.feature_dim: int = (model.config.num_hidden_layers + 2) * self.hidden_size
        self.model.feature_extractor.register_forward_hook(_to_frame_rate)

    @torch.no_grad()
    def encode(self, wave: np.ndarray | Tensor, frames: int | None = None) -> Tensor:
        """Mono 16 kHz audio (N,) -> (F, (L + 2) * D) float32, F = ceil(N / 640), or `frames` with silence at the end.

        Channel order: last hidden state, then hidden states 0..L (0 is before the first layer). Encode a whole clip at
        once and slice: every frame attends to all others. Raises ValueError for a wave that is empty or not (N,).
        """
        samples = torch.as_tensor(wave, dtype=torch.float32)
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"Audio of shape {tuple(samples.shape)}; expected (samples,) of mono 16 kHz, not empty.")
        frames = max(frames or 0, math.ceil(len(samples) / SAMPLES_PER_FRAME))
        # Padded after normalisation, so that the padding is exactly zero.
        samples = pad(normalise(samples), (0, frames * SAMPLES_PER_FRAME - len(samples)))
        output = self.model(samples[None].to(self.model.device), output_hidden_states=True)
        return torch.cat([output.last_hidden_state, *output.hidden_states], dim=-1)[0]


def normalise(samples: Tensor) -> Tensor:
    """Zero mean, unit variance over the whole wave, as Wav2Vec2FeatureExtractor does."""
    return (samples - samples.mean()) / torch.sqrt(samples.var(correction=0) + 1e-7)


def _to_frame_rate(module: nn.Module, inputs: tuple[Tensor], features: Tensor) -> Tensor:
    frames = inputs[0].shape[-1] // SAMPLES_PER_FRAME
    return interpolate(features, size=frames, mode="linear", align_corners=True)


def drop_duplicate(features: Tensor, hidden_size: int) -> Tensor:
    """(F, (L + 2) * D) -> (F, (L + 1) * D) for storage: the last block repeats the first. `hidden_size` is D."""
    return features[..., :-hidden_size]


def restore_duplicate(features: Tensor, audio_dim: int) -> Tensor:
    """(..., (L + 1) * D) as stored -> (..., audio_dim = (L + 2) * D) as the model takes it."""
    return torch.cat([features, features[..., : audio_dim - features.shape[-1]]], dim=-1)


def load_audio_encoder(folder: Path | str, device: torch.device | str = "cpu") -> AudioEncoder:
    """Load a transformers wav2vec2 folder of any depth and width; a CTC or pretraining head in it is ignored.

    On device "meta" only headers are read and checked. Raises FileNotFoundError, CheckpointError.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise MissingFileError(f"{folder} has no config.json; expected a transformers wav2vec2 folder.")
    # Without masking the model has no masking vector: it is for pretraining, and the published base-960h has none.
    shapes = {audio_to_transformers(name): shape for name, shape in read_shapes(folder).items()}
    config = read_config(Wav2Vec2Config, folder, shapes, _sizes, mask_time_prob=0.0, mask_feature_prob=0.0)
    model = build_described(folder / "config.json", lambda: Wav2Vec2Model(config))
    named = ((audio_to_transformers(name), tensor) for name, tensor in read_tensors(folder, device))
    fill_module(model, ((name, tensor) for name, tensor in named if not name.startswith(_TRAINING_ONLY)), folder)
    return AudioEncoder(model.to(device))


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """The sizes in a wav2vec2 config.json, by the shapes of its weights."""
    names = [f"feature_extractor.conv_layers.{number}.conv.weight" for number in range(len(shapes))]
    convolutions = [shapes[name] for name in names if len(shapes.get(name, ())) == 3]
    # Its weights are stored as a direction and a length for each tap.
    position = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    width, group = side(shapes, position, 0), side(shapes, position, 1)
    return {
        "num_hidden_layers": layers(shapes, "encoder.layers."),
        "hidden_size": side(shapes, "encoder.layer_norm.weight", 0),
        "intermediate_size": side(shapes, "encoder.layers.0.feed_forward.intermediate_dense.weight", 0),
        "conv_dim": [shape[0] for shape in convolutions] or None,
        "conv_kernel": [shape[2] for shape in convolutions] or None,
        "num_conv_pos_embeddings": side(shapes, position, 2),
        "num_conv_pos_embedding_groups": width and group and width // group,
    }
