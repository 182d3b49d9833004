from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

from omniavatar.encoders.audio import (
    AudioEncoder,
    drop_duplicate,
    load_audio_encoder,
    normalise,
    restore_duplicate,
)
from omniavatar.weights.tensor_files import CheckpointError


def sound(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1 + 0.05).astype(np.float32)


@pytest.mark.parametrize(("samples", "frames"), [(640, 1), (641, 2), (16000, 25), (20001, 32)])
def test_one_row_per_video_frame(audio_encoder: AudioEncoder, samples: int, frames: int) -> None:
    states = audio_encoder.encode(sound(samples))
    assert states.shape == (frames, audio_encoder.feature_dim) == (frames, (2 + 2) * 16)
    assert states.dtype == torch.float32


def test_normalisation_is_that_of_the_feature_extractor() -> None:
    wave = sound(5000)
    expected = Wav2Vec2FeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_values[0]
    assert (normalise(torch.from_numpy(wave)) - expected).abs().max() < 1e-6


@torch.no_grad()
def test_states_are_those_of_stretched_convolution_features(audio_encoder: AudioEncoder) -> None:
    """The same network step by step, without the hook: convolutions, stretch to 25 per second, layers."""
    wave = sound(32000)
    stock = Wav2Vec2Model(audio_encoder.model.config).eval()
    stock.load_state_dict(audio_encoder.model.state_dict())
    features = stock.feature_extractor(normalise(torch.from_numpy(wave))[None])
    assert features.shape[-1] == 99
    stretched = interpolate(features, size=50, mode="linear", align_corners=True)
    place = np.linspace(0, 98, 50)  # first on first, last on last
    by_hand = np.array([np.interp(place, np.arange(99), channel) for channel in features[0].numpy()])
    assert np.abs(stretched[0].numpy() - by_hand).max() < 1e-5
    hidden, _ = stock.feature_projection(stretched.transpose(1, 2))
    hidden = stock.encoder.layer_norm(hidden + stock.encoder.pos_conv_embed(hidden))
    states = [hidden]
    for layer in stock.encoder.layers:
        output = layer(states[-1])
        states.append(output if isinstance(output, torch.Tensor) else output[0])
    expected = torch.cat([states[-1], *states], dim=-1)[0]
    assert expected.std() > 0.1
    assert torch.equal(audio_encoder.encode(wave), expected)


def test_first_and_last_block_are_equal_and_stored_once(audio_encoder: AudioEncoder) -> None:
    states = audio_encoder.encode(sound(6400))
    assert torch.equal(states[:, :16], states[:, -16:])
    stored = drop_duplicate(states, audio_encoder.hidden_size)
    assert stored.shape == (10, 3 * 16)
    assert torch.equal(restore_duplicate(stored, audio_encoder.feature_dim), states)


@torch.no_grad()
def test_silence_is_added_after_normalisation(audio_encoder: AudioEncoder) -> None:
    wave = sound(6400)
    padded = torch.zeros(9600)
    padded[:6400] = normalise(torch.from_numpy(wave))
    expected = audio_encoder.model(padded[None]).last_hidden_state[0]
    assert torch.equal(audio_encoder.encode(wave, frames=15)[:, :16], expected)


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.zeros((2, 640), np.float32)])
def test_audio_of_another_shape_is_refused(audio_encoder: AudioEncoder, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mono 16 kHz"):
        audio_encoder.encode(wave)


def test_the_published_size() -> None:
    with torch.device("meta"):
        assert AudioEncoder(Wav2Vec2Model(Wav2Vec2Config())).feature_dim == 10752


def test_folders_load_with_or_without_a_head(audio_encoder: AudioEncoder, tmp_path: Path) -> None:
    expected = audio_encoder.encode(sound(6400))
    audio_encoder.model.save_pretrained(tmp_path / "plain")
    speech = Wav2Vec2ForCTC(audio_encoder.model.config)
    speech.wav2vec2.load_state_dict(audio_encoder.model.state_dict())
    speech.save_pretrained(tmp_path / "ctc")
    # The published file names the weight norm of the positional convolution in the old way.
    file = tmp_path / "ctc" / "model.safetensors"
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(file)
    for name in list(state):
        for ours, theirs in old.items():
            if name.endswith(ours):
                state[name.replace(ours, theirs)] = state.pop(name)
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in state and "lm_head.weight" in state
    save_file(state, file)
    for folder in ("plain", "ctc"):
        assert torch.equal(load_audio_encoder(tmp_path / folder).encode(sound(6400)), expected)
    del state["wav2vec2.encoder.layers.0.attention.q_proj.weight"]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"missing: encoder.layers.0.attention.q_proj.weight"):
        load_audio_encoder(tmp_path / "ctc")
