"""A base built in shards: without memory at full size, and equal to the one built whole at small size."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniavatar.model.adapter import inject_lora, lora_layers, mark_trainable
from omniavatar.model.transformer import AvatarTransformer, new_base, to_avatar
from omniavatar.weights.checkpoints import AdapterConfig, save_adapter
from omniavatar.weights.tensor_files import CheckpointError
from training.config import EngineConfig, ModelConfig
from training.engine.settings import deepspeed_settings
from training.engine.sharded_init import builds_in_shards, gathered, without_draws
from training.engine.zero import join_group
from training.omniavatar.model import build_model

# isort: split
import deepspeed  # after the settings, which choose its accelerator

SHARDED = EngineConfig(build="sharded")


@pytest.fixture(autouse=True)
def group() -> None:
    join_group(threads=1)


@pytest.fixture
def lora(base_folder: Path) -> ModelConfig:
    return ModelConfig(base=base_folder, lora_rank=4, lora_alpha=2.0)


def values(model: AvatarTransformer) -> dict[str, Tensor]:
    with gathered(model.parameters()):
        return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def both(config: ModelConfig, precision: str = "bf16") -> tuple[AvatarTransformer, AvatarTransformer]:
    return build_model(config, 24, precision, 7, SHARDED), build_model(config, 24, precision, 7)


def test_14b_is_built_without_its_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = deepspeed_settings(EngineConfig(), 1)
    with deepspeed.zero.Init(config_dict_or_path=settings, remote_device="meta"), without_draws():
        model = new_base({})  # diffusers' defaults are the sizes of 14B
    # The one layer of the base whose weights are needed, to widen the input.
    model.dit.patch_embedding = nn.Conv3d(16, 5120, (1, 2, 2), (1, 2, 2))
    to_avatar(model, 10_752)
    with torch.device("meta"):
        inject_lora(model)
    mark_trainable(model, "lora")
    numbers = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(numbers[name] for name in trained) == 618_684_512
    assert sum(numbers[name] for name in numbers if ".lora_" in name) == 613_416_960
    assert all(p.numel() == 0 for name, p in model.named_parameters() if ".base_layer." in name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kibibytes, of 57 million


def test_in_shards_it_is_the_same_model(lora: ModelConfig) -> None:
    sharded, whole = both(lora)
    assert all(p.numel() == 0 for name, p in sharded.named_parameters() if ".base_layer." in name)
    found, expected = values(sharded), values(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(found[name].dtype == value.dtype for name, value in expected.items())
    assert not any(value.any() for name, value in found.items() if "lora_B" in name)
    assert any(value.any() for name, value in found.items() if "lora_A" in name)


@pytest.mark.parametrize("variant", ["lora", "frozen_dit"])
def test_random_weights_are_drawn_in_shards_too(lora: ModelConfig, variant: str) -> None:
    config = replace(lora, init="random", variant=variant)
    found, expected = map(values, both(config, "fp32"))
    assert all(torch.equal(found[name], value) for name, value in expected.items() if "lora" not in name)
    assert found["dit.blocks.0.ffn.net.2.base_layer.weight" if variant == "lora" else "dit.proj_out.weight"].std() > 0


def test_an_adapter_is_continued_on_a_base_in_shards(lora: ModelConfig, tmp_path: Path) -> None:
    model = build_model(lora, 24, "fp32", seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    save_adapter(model, tmp_path, AdapterConfig("lora", 4, 2.0))
    sharded, whole = both(replace(lora, adapter=tmp_path), "fp32")
    found, expected = values(sharded), values(whole)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(lora_layers(sharded)) == 40


def test_a_broken_or_foreign_base_is_refused(lora: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").write_text((lora.base / "config.json").read_text())
    tensors = load_file(lora.base / file.name)
    save_file(tensors | {"proj_out.bias": torch.full_like(tensors["proj_out.bias"], torch.nan)}, file)
    with pytest.raises(CheckpointError, match="broken: proj_out.bias"):
        build_model(replace(lora, base=tmp_path), 24, "fp32", 0, SHARDED)
    tensors.pop("proj_out.bias")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="missing: proj_out.bias"):
        build_model(replace(lora, base=tmp_path), 24, "fp32", 0, SHARDED)


def test_when_a_base_is_built_in_shards(tmp_path: Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(9_000_000_000)  # a hole; nothing is written
    assert builds_in_shards(SHARDED, tmp_path, "lora")
    assert not builds_in_shards(EngineConfig(), tmp_path, "lora")  # by one rank
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.engine.sharded_init.dist.get_world_size", lambda: 2)
        assert builds_in_shards(EngineConfig(), tmp_path, "lora")
        assert not builds_in_shards(EngineConfig(build="whole"), tmp_path, "lora")
        assert not builds_in_shards(EngineConfig(stage=2), tmp_path, "lora")
        assert not builds_in_shards(EngineConfig(), tmp_path, "full")
        with open(tmp_path / "model.safetensors", "wb") as file:
            file.truncate(6_000_000_000)
        assert not builds_in_shards(EngineConfig(), tmp_path, "lora")
    with pytest.raises(ValueError, match="model.variant full; only a base that stays frozen"):
        builds_in_shards(SHARDED, tmp_path, "full")
