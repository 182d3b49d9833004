from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch

from omniavatar.config import AudioEntry, Recompute, Variant
from omniavatar.model.adapter import lora_layers
from omniavatar.model.audio_entry import audio_tensor_names
from omniavatar.model.transformer import load_base, new_base
from omniavatar.weights.checkpoints import AdapterConfig, save_adapter, save_base
from tests.benchmarks.measure import peak_resident
from training.config import ModelConfig
from training.omniavatar.export import adapter_config
from training.omniavatar.model import build_model

AUDIO_DIM = 24
KEPT = ("norm1", "norm2", "norm3", "time_embedder", "scale_shift_table")  # float32 always


@pytest.fixture
def lora(base_folder: Path) -> ModelConfig:
    return ModelConfig(base=base_folder, lora_rank=4, lora_alpha=2.0)


def test_before_the_first_step_every_variant_answers_as_its_base(lora: ModelConfig) -> None:
    torch.manual_seed(1)
    latents, text, time = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 6, 12), torch.tensor([300.0, 900.0])
    condition, audio = torch.randn(2, 17, 3, 4, 4), torch.randn(2, 9, AUDIO_DIM)
    expected = load_base(lora.base)(latents, time, text)
    assert expected.std() > 0.01
    for variant in ("lora", "full", "frozen_dit"):
        model = build_model(replace(lora, variant=variant), AUDIO_DIM, "fp32", seed=0)
        assert torch.equal(model(latents, time, text, condition, audio), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["lora", "frozen_dit", "full"])
def test_frozen_weights_are_loaded_in_their_type_and_what_is_trained_begins_as_in_float32(
    lora: ModelConfig, tmp_path: Path, variant: Variant, stored: torch.dtype
) -> None:
    save_base(load_base(lora.base, stored), tmp_path)
    config = replace(lora, base=tmp_path, variant=variant)
    half, whole = (dict(build_model(config, AUDIO_DIM, dtype, seed=3).named_parameters()) for dtype in ("bf16", "fp32"))
    assert half.keys() == whole.keys()
    for name, value in whole.items():
        exact = value.requires_grad or any(part in KEPT for part in name.split("."))
        assert half[name].dtype == (torch.float32 if exact else torch.bfloat16)
        assert torch.equal(half[name], value.to(half[name].dtype))
    assert any(value.dtype == torch.bfloat16 for value in half.values()) == (variant != "full")


def test_loading_takes_no_more_than_the_frozen_type(lora: ModelConfig, tmp_path: Path) -> None:
    config = {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 4, "text_dim": 64}
    save_base(new_base(config), tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    wide = replace(lora, base=tmp_path)
    build_model(wide, AUDIO_DIM, "bf16", seed=0)  # what the process loads once
    half, whole = (peak_resident(partial(build_model, wide, AUDIO_DIM, dtype, 0)) for dtype in ("bf16", "fp32"))
    # The map of the file is resident too.
    assert whole - half > 0.4 * file.stat().st_size / 1e6


@pytest.mark.parametrize("entry", get_args(AudioEntry))
def test_every_audio_entry_is_trained_saved_and_continued(lora: ModelConfig, tmp_path: Path, entry: AudioEntry) -> None:
    config = replace(lora, audio_entry=entry)
    model = build_model(config, AUDIO_DIM, "fp32", seed=0)
    assert {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("dit.")} == set(
        audio_tensor_names(entry, num_layers=4)
    )
    save_adapter(model, tmp_path, adapter_config(config))
    again = build_model(replace(lora, adapter=tmp_path), AUDIO_DIM, "fp32", seed=1)
    assert again.audio_entry == entry


def test_gradient_checkpointing_is_what_the_recipe_says(lora: ModelConfig) -> None:
    running = {}
    for mode in get_args(Recompute):
        model = build_model(replace(lora, gradient_checkpointing=mode), AUDIO_DIM, "fp32", seed=0)
        running[mode] = model.dit.gradient_checkpointing
    assert running == {"none": False, "full": True, "selective": True, "offload": True}


def test_timesteps_are_rounded_where_the_recipe_says_so(lora: ModelConfig) -> None:
    answers = []
    for rounded in (True, False):
        torch.manual_seed(1)
        model = build_model(replace(lora, variant="base", round_timestep=rounded), AUDIO_DIM, "fp32", seed=0)
        latents, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 6, 12)
        answers += [model(latents, torch.tensor([time]), text) for time in (701.3, 700.0)]
    # Between 512 and 1024, bfloat16 knows every fourth number.
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[1], answers[3])
    assert not torch.equal(answers[2], answers[3])


def test_variants_train_what_they_say(lora: ModelConfig) -> None:
    trained = {}
    for variant in ("base", "lora", "full", "frozen_dit"):
        model = build_model(replace(lora, variant=variant), AUDIO_DIM, "fp32", seed=0)
        trained[variant] = {name for name, p in model.named_parameters() if p.requires_grad}
        assert model.training
        if variant in ("base", "full"):
            assert trained[variant] == {name for name, _ in model.named_parameters()}
    fresh = {name for name in trained["frozen_dit"] if not name.startswith("dit.")}
    assert trained["frozen_dit"] - fresh == {"dit.patch_embedding.weight", "dit.patch_embedding.bias"}
    # Ten linears of two matrices in each of four blocks.
    assert len(trained["lora"] - trained["frozen_dit"]) == 10 * 2 * 4


def test_a_random_base_takes_only_the_configuration_and_depends_on_the_seed(lora: ModelConfig) -> None:
    random = replace(lora, variant="base", init="random")
    one, same, other = (build_model(random, AUDIO_DIM, "fp32", seed=seed) for seed in (1, 1, 2))
    weights = [model.dit.blocks[0].attn1.to_q.weight for model in (one, same, other, load_base(lora.base))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[1], weights[3])


def test_frozen_weights_are_bf16_but_for_the_list_and_trained_ones_fp32(lora: ModelConfig) -> None:
    model = build_model(lora, AUDIO_DIM, "bf16", seed=0)
    types = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert {dtype for dtype, trained in types.values() if trained} == {torch.float32}
    halves = {name for name, (dtype, trained) in types.items() if dtype == torch.bfloat16}
    assert "dit.blocks.0.attn1.to_q.base_layer.weight" in halves
    kept = ("time_embedder", "scale_shift_table", "norm2")
    assert all(any(part in name for name in set(types) - halves) for part in kept)
    assert not any(part in name for name in halves for part in kept)
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())  # the RoPE tables


def test_an_adapter_is_continued_with_its_own_rank(lora: ModelConfig, tmp_path: Path) -> None:
    model = build_model(lora, AUDIO_DIM, "fp32", seed=0)
    with torch.no_grad():
        model.audio_cond_projs[0].weight.fill_(0.5)
    save_adapter(model, tmp_path, AdapterConfig("lora", 4, 2.0))
    again = build_model(replace(lora, adapter=tmp_path, lora_rank=None), AUDIO_DIM, "fp32", seed=1)
    assert again.audio_cond_projs[0].weight.unique().tolist() == [0.5]
    assert {layer.r["default"] for layer in lora_layers(again)} == {4}
    with pytest.raises(ValueError, match="lora_rank is 64, but the adapter"):
        build_model(replace(lora, adapter=tmp_path, lora_rank=64), AUDIO_DIM, "fp32", seed=1)
    with pytest.raises(ValueError, match="width 24, the shards hold 32"):
        build_model(replace(lora, adapter=tmp_path), 32, "fp32", seed=0)
