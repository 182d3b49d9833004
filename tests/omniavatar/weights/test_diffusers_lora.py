import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from omniavatar.model.adapter import inject_lora
from omniavatar.model.transformer import AvatarTransformer, load_base, to_avatar
from omniavatar.weights.checkpoints import AdapterConfig, adapter_tensors, save_base
from omniavatar.weights.diffusers_lora import LORA_FILE, MODULES_FILE, read_diffusers_lora, save_diffusers_lora

RANK, ALPHA = 4, 2.0
WIDTH = 64


@pytest.fixture
def trained(base: AvatarTransformer, tmp_path: Path) -> AvatarTransformer:
    """An avatar model with LoRA on the base of tmp_path/base, everything trained at random."""
    save_base(base, tmp_path / "base")
    model = inject_lora(to_avatar(load_base(tmp_path / "base"), WIDTH), RANK, ALPHA)
    generator = torch.Generator().manual_seed(1)
    model.load_state_dict(
        {n: 0.2 * torch.randn(t.shape, generator=generator) for n, t in adapter_tensors(model, "lora").items()},
        strict=False,
    )
    return model.eval()


@pytest.fixture
def folder(trained: AvatarTransformer, tmp_path: Path) -> Path:
    config = AdapterConfig("lora", RANK, ALPHA)
    (tmp_path / "diffusers").mkdir()
    save_diffusers_lora(adapter_tensors(trained, "lora"), tmp_path / "diffusers", config, torch.float32)
    return tmp_path / "diffusers"


def stock(base: Path, modules: dict[str, Tensor]) -> WanTransformer3DModel:
    """diffusers' own transformer whose patch embedding takes 33 channels."""
    model = WanTransformer3DModel.from_pretrained(base).eval()
    weight = modules["patch_embedding.weight"]
    model.patch_embedding = nn.Conv3d(weight.shape[1], weight.shape[0], weight.shape[2:], weight.shape[2:])
    model.patch_embedding.load_state_dict({"weight": weight, "bias": modules["patch_embedding.bias"]})
    return model


@torch.no_grad()
def test_diffusers_loads_it_and_computes_what_we_compute(
    trained: AvatarTransformer, folder: Path, tmp_path: Path
) -> None:
    model = stock(tmp_path / "base", load_file(folder / MODULES_FILE))
    latents, condition = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 17, 3, 4, 6)
    time, text = torch.tensor([300.0, 700.0]), torch.randn(2, 5, 24)
    expected = trained(latents, time, text, condition)
    inputs = torch.cat([latents, condition], 1), time, text
    without = model(*inputs, return_dict=False)[0]
    model.load_lora_adapter(str(folder), use_safetensors=True)
    assert torch.allclose(model(*inputs, return_dict=False)[0], expected, atol=1e-5)
    assert (without - expected).abs().max() > 0.01


def test_a_pipeline_reads_every_matrix_and_the_scale(trained: AvatarTransformer, folder: Path) -> None:
    state, metadata = WanLoraLoaderMixin.lora_state_dict(str(folder), return_lora_metadata=True)
    assert len(state) == 20 * 6 and all(name.startswith("transformer.blocks.") for name in state)
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (RANK, ALPHA)
    with safe_open(folder / LORA_FILE, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"]) == metadata


def test_reading_it_back_gives_our_names_and_values(trained: AvatarTransformer, folder: Path) -> None:
    read, expected = dict(read_diffusers_lora(folder)), adapter_tensors(trained, "lora")
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) for name, value in expected.items())
