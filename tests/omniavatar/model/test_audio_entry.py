from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from omniavatar.config import AudioEntry, audio_blocks
from omniavatar.model.adapter import inject_lora
from omniavatar.model.audio_entry import (
    FrameAttention,
    FrameProjection,
    audio_modules,
    audio_tensor_names,
)
from omniavatar.model.transformer import AvatarTransformer, build_condition
from omniavatar.weights.checkpoints import AdapterConfig, load_adapter, save_adapter
from omniavatar.weights.tensor_files import CheckpointError

LORA_14B = 613_416_960


def test_audio_blocks_are_the_papers() -> None:
    assert (list(audio_blocks(40)), list(audio_blocks(30))) == (list(range(2, 21)), list(range(2, 16)))
    assert (list(audio_blocks(40, "single")), list(audio_blocks(30, "single"))) == ([20], [15])
    assert audio_blocks(40, "cross_attention") == audio_blocks(40)


def test_published_names_are_those_of_the_papers_entry() -> None:
    names = audio_tensor_names("multi", 40)
    whole = ["audio_proj.proj", "audio_proj.norm_out", *(f"audio_cond_projs.{index}" for index in range(19))]
    assert names == [f"{name}.{kind}" for name in whole for kind in ("weight", "bias")]
    assert len(audio_tensor_names("single", 40)) == 6
    assert "audio_cond_projs.18.o.bias" in audio_tensor_names("cross_attention", 40)


def test_parameters_at_14b() -> None:
    sizes = {}
    for entry in get_args(AudioEntry):
        with torch.device("meta"):
            pack, layers = audio_modules(entry, num_layers=40, dim=5120, audio_dim=10752)
        sizes[entry] = sum(p.numel() for module in (pack, layers) for p in module.parameters())
    pack = 43008 * 32 + 32 + 2 * 32
    assert sizes["multi"] == pack + 19 * (5120 * 32 + 5120)
    assert sizes["single"] == pack + 5120 * 32 + 5120
    attention = 2 * 5120 * 512 + 512 + 5120 + 2 * 512 * 512 + 512
    assert sizes["cross_attention"] == 10752 * 512 + 512 + 2 * 512 + 4 * 512 + 19 * attention == 115_201_536
    assert sizes["cross_attention"] < LORA_14B / 5


def test_a_projection_gives_every_token_of_a_frame_the_same_vector() -> None:
    layer = FrameProjection(hidden=3, dim=5)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    packed = torch.randn(2, 4, 3)
    given = layer(torch.randn(2, 4, 6, 5), packed)
    assert torch.allclose(given, (packed @ layer.weight.T + layer.bias)[:, :, None])


@pytest.fixture
def attention() -> FrameAttention:
    torch.manual_seed(0)
    layer = FrameAttention(hidden=128, dim=10)
    torch.nn.init.normal_(layer.o.weight)
    return layer


@torch.no_grad()
def test_attention_equals_its_formula_token_by_token(attention: FrameAttention) -> None:
    tokens, packed = torch.randn(2, 3, 5, 10), torch.randn(2, 3, 4, 128)
    expected = torch.zeros(2, 3, 5, 10)
    for sample in range(2):
        for frame in range(3):
            key, value = attention.k(packed[sample, frame]), attention.v(packed[sample, frame])
            for place in range(5):
                query = attention.q(functional.layer_norm(tokens[sample, frame, place], (10,)))
                heads = [slice(0, 64), slice(64, 128)]
                weights = [(key[:, head] @ query[head] / 8).softmax(0) for head in heads]
                attended = torch.cat([w @ value[:, head] for w, head in zip(weights, heads, strict=True)])
                expected[sample, frame, place] = attention.o(attended)
    assert expected.std() > 0.1
    assert torch.allclose(attention(tokens, packed), expected, atol=1e-5)


@torch.no_grad()
def test_the_tokens_of_a_frame_hear_that_frame_alone(attention: FrameAttention) -> None:
    tokens, packed = torch.randn(1, 3, 5, 10), torch.randn(1, 3, 4, 128)
    before = attention(tokens, packed)
    packed[:, 1] += 1
    changed = (attention(tokens, packed) != before).flatten(2).any(-1)
    assert changed.tolist() == [[False, True, False]]


@torch.no_grad()
def output(model: AvatarTransformer, audio: Tensor | None = None) -> Tensor:
    torch.manual_seed(2)
    latents, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 4, 24)
    condition, drawn = build_condition(torch.randn(1, 16, 1, 4, 4), 2, 1), torch.randn(1, 5, 64)
    return model(latents, torch.tensor([700.0]), text, condition, drawn if audio is None else audio)


def test_the_order_of_the_four_pixel_frames_is_heard(any_avatar: AvatarTransformer) -> None:
    torch.manual_seed(3)
    audio = torch.randn(1, 5, 64)
    turned = torch.cat([audio[:, :1], audio[:, 1:].flip(1)], dim=1)
    assert (output(any_avatar, audio) - output(any_avatar, turned)).abs().max() > 1e-3


def test_an_adapter_remembers_how_its_audio_enters(
    any_avatar: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path
) -> None:
    inject_lora(any_avatar, rank=2, alpha=1.0)
    config = AdapterConfig(rank=2, alpha=1.0, audio_entry=any_avatar.audio_entry)
    save_adapter(any_avatar, tmp_path, config)
    loaded = load_adapter(other_base, tmp_path)
    assert loaded.audio_entry == any_avatar.audio_entry
    assert loaded.audio_dim == 64
    assert all(torch.equal(v, any_avatar.state_dict()[n]) for n, v in loaded.state_dict().items() if "audio" in n)
    wrong = AdapterConfig(rank=2, alpha=1.0, audio_entry="single" if config.audio_entry == "multi" else "multi")
    with pytest.raises(CheckpointError, match="audio_cond_projs"):
        save_adapter(any_avatar, tmp_path, wrong)


def test_an_unknown_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="'adain'; expected one of multi, single, cross_attention"):
        audio_modules("adain", num_layers=6, dim=8, audio_dim=8)
