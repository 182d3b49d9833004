import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniavatar.model.adapter import inject_lora, merge_lora
from omniavatar.model.transformer import AvatarTransformer, build_condition, load_base, to_avatar
from omniavatar.weights.checkpoints import AdapterConfig, adapter_tensors, save_base
from omniavatar.weights.key_names import dit_to_diffusers
from omniavatar.weights.loras import (
    LORA_FILE,
    MODULES_FILE,
    merge_extra_lora,
    read_comfyui_lora,
    read_diffusers_lora,
    save_comfyui_lora,
    save_diffusers_lora,
)
from omniavatar.weights.tensor_files import CheckpointError

RANK = 3


def weights(model: AvatarTransformer, names: list[str]) -> list[Tensor]:
    return [model.get_parameter(f"dit.{name}").detach().clone() for name in names]


def few_step_tensors() -> dict[str, Tensor]:
    """The kinds of tensors that distilled LoRA files hold, in the names of the original model."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "blocks.0.self_attn.q.lora_down.weight": (RANK, 32),
        "blocks.0.self_attn.q.lora_up.weight": (32, RANK),
        "blocks.0.self_attn.q.diff_b": (32,),
        "blocks.5.ffn.0.lora_down.weight": (RANK, 32),
        "blocks.5.ffn.0.lora_up.weight": (48, RANK),
        "blocks.5.ffn.0.alpha": (),
        "blocks.2.cross_attn.norm_k.diff": (32,),
        "blocks.2.norm3.diff": (32,),
        "patch_embedding.diff": (32, 16, 1, 2, 2),
        "time_projection.1.lora_down.weight": (RANK, 32),
        "time_projection.1.lora_up.weight": (192, RANK),
        "head.head.diff_b": (64,),
    }
    made = {f"diffusion_model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["diffusion_model.blocks.5.ffn.0.alpha"] = torch.tensor(1.5)
    return made


TOUCHED = [
    "blocks.0.attn1.to_q.weight",
    "blocks.0.attn1.to_q.bias",
    "blocks.5.ffn.net.0.proj.weight",
    "blocks.2.attn2.norm_k.weight",
    "blocks.2.norm2.weight",
    "patch_embedding.weight",
    "condition_embedder.time_proj.weight",
    "proj_out.bias",
]


def test_every_kind_of_update_reaches_its_weight(avatar: AvatarTransformer, tmp_path: Path) -> None:
    for block in avatar.dit.blocks:
        block.norm2 = torch.nn.LayerNorm(32)  # Wan's cross_attn_norm, which the tiny model is without
    tensors = few_step_tensors()
    save_file(tensors, tmp_path / "few.safetensors")
    given = {name.removeprefix("diffusion_model."): tensor for name, tensor in tensors.items()}
    before, rest = weights(avatar, TOUCHED), {n: p.detach().clone() for n, p in avatar.named_parameters()}
    merge_extra_lora(avatar, tmp_path / "few.safetensors", scale=0.5)
    product = {
        layer: given[f"{layer}.lora_up.weight"] @ given[f"{layer}.lora_down.weight"]
        for layer in ("blocks.0.self_attn.q", "blocks.5.ffn.0", "time_projection.1")
    }
    patch = torch.zeros(32, 33, 1, 2, 2)
    patch[:, :16] = given["patch_embedding.diff"]
    expected = [
        product["blocks.0.self_attn.q"],
        given["blocks.0.self_attn.q.diff_b"],
        product["blocks.5.ffn.0"] * 1.5 / RANK,
        given["blocks.2.cross_attn.norm_k.diff"],
        given["blocks.2.norm3.diff"],
        patch,
        product["time_projection.1"],
        given["head.head.diff_b"],
    ]
    for old, new, update in zip(before, weights(avatar, TOUCHED), expected, strict=True):
        torch.testing.assert_close(new, old + 0.5 * update)
    changed = [n for n, p in avatar.named_parameters() if not torch.equal(p, rest[n])]
    assert sorted(changed) == sorted(f"dit.{name}" for name in TOUCHED)


@torch.no_grad()
def test_a_file_of_diffusers_comes_beside_the_adapter_with_its_own_scale(
    avatar: AvatarTransformer, tmp_path: Path
) -> None:
    """A LoRA saved for diffusers and merged here is the LoRA itself, beside an adapter that is merged already."""
    inject_lora(avatar, 4, 2.0)
    generator = torch.Generator().manual_seed(1)
    named = {n: 0.2 * torch.randn(t.shape, generator=generator) for n, t in adapter_tensors(avatar, "lora").items()}
    lora = {name: tensor for name, tensor in named.items() if ".lora_" in name}
    save_diffusers_lora(lora, tmp_path, 4, 2.0, torch.float32)
    torch.manual_seed(0)
    given = (torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 24))
    condition = build_condition(torch.randn(1, 16, 1, 4, 4), 1, 0)
    without = avatar(*given, condition)
    avatar.load_state_dict(lora, strict=False)
    once = avatar(*given, condition)
    avatar.load_state_dict({n: torch.zeros_like(t) for n, t in lora.items()}, strict=False)
    merge_lora(avatar)
    merge_extra_lora(avatar, tmp_path / LORA_FILE)
    assert (once - without).abs().max() > 0.1
    torch.testing.assert_close(avatar(*given, condition), once, rtol=1e-4, atol=1e-5)
    assert len(load_file(tmp_path / LORA_FILE)) == 20 * 6


def _flat(name: str) -> str:
    layer, dot, part = next(name.partition(end) for end in (".lora_", ".alpha", ".diff") if end in name)
    return f"{layer.replace('.', '_')}{dot}{part}"


@pytest.mark.parametrize(
    "prefix", ["lora_unet_", "lora_unet__", "lora_transformer_", "pipe.dit.", "model.diffusion_model."]
)
def test_other_trainers_names_reach_the_same_weights(avatar: AvatarTransformer, tmp_path: Path, prefix: str) -> None:
    """kohya and musubi-tuner put underscores for dots, in the names of Wan2.1 or of diffusers."""
    given = {n.removeprefix("diffusion_model."): x for n, x in few_step_tensors().items() if "norm" not in n}
    if prefix == "lora_transformer_":
        given = {dit_to_diffusers(name): tensor for name, tensor in given.items()}
    named = {f"{prefix}{_flat(name) if prefix.startswith('lora') else name}": tensor for name, tensor in given.items()}
    save_file(named, tmp_path / "other.safetensors")
    save_file({f"diffusion_model.{name}": x for name, x in given.items()}, tmp_path / "comfyui.safetensors")
    twin = copy.deepcopy(avatar)
    merge_extra_lora(avatar, tmp_path / "other.safetensors")
    merge_extra_lora(twin, tmp_path / "comfyui.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(avatar.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_unet_blocks_9_self_attn_q.diff_b": torch.zeros(32)}, "blocks_9_self_attn_q"),
        ({"lora_te1_text_model_encoder.lora_down.weight": torch.zeros(2, 3)}, "lora_te1_text_model"),
        ({"diffusion_model.blocks.9.self_attn.q.diff_b": torch.zeros(32)}, "blocks.9"),
        ({"diffusion_model.blocks.0.self_attn.k.lora_up.weight": torch.zeros(32, 3)}, "has only up"),
        ({"diffusion_model.blocks.0.self_attn.q.diff_b": torch.zeros(31)}, r"\(31,\)"),
        ({"diffusion_model.blocks.0.self_attn.q.diff_m": torch.zeros(32)}, "unexpected: .*diff_m"),
        ({"diffusion_model.head.head.diff_b": torch.full((64,), float("nan"))}, "NaN"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(2, 32)}, "do not belong together"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    avatar: AvatarTransformer, tmp_path: Path, changes: dict[str, Tensor], words: str
) -> None:
    fitting = {name: x for name, x in few_step_tensors().items() if "norm3" not in name}
    save_file(fitting | changes, tmp_path / "few.safetensors")
    before = [parameter.clone() for parameter in avatar.parameters()]
    with pytest.raises(CheckpointError, match=words):
        merge_extra_lora(avatar, tmp_path / "few.safetensors")
    assert all(torch.equal(old, new) for old, new in zip(before, avatar.parameters(), strict=True))


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
    save_diffusers_lora(
        adapter_tensors(trained, "lora"), tmp_path / "diffusers", config.rank, config.alpha, torch.float32
    )
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


def comfyui_updates(file: Path) -> dict[str, Tensor]:
    """{layer of Wan2.1: update of its weight}, as readers that look at the tensors alone compute it."""
    state = load_file(file)
    layers = [name.removesuffix(".lora_down.weight") for name in state if name.endswith(".lora_down.weight")]
    return {
        layer.removeprefix("diffusion_model."): state[f"{layer}.alpha"]
        / len(state[f"{layer}.lora_down.weight"])
        * state[f"{layer}.lora_up.weight"]
        @ state[f"{layer}.lora_down.weight"]
        for layer in layers
    }


@torch.no_grad()
def test_the_file_for_comfyui_has_the_same_strength_for_every_reader(
    trained: AvatarTransformer, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    save_comfyui_lora(adapter_tensors(trained, "lora"), file, ALPHA, torch.float32)
    assert dict(read_comfyui_lora(file)).keys() == {n for n in adapter_tensors(trained, "lora") if ".lora_" in n}
    layers = dict(trained.dit.named_modules())
    updates = comfyui_updates(file)
    assert len(updates) == 60
    for name, update in updates.items():
        exact = layers[dit_to_diffusers(f"{name}.").removesuffix(".")].get_delta_weight("default")
        torch.testing.assert_close(update, exact)
    # diffusers converts it to what it reads from the folder made for it, and fuses the same update.
    model = stock(tmp_path / "base", load_file(folder / MODULES_FILE))
    latents, condition = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 17, 3, 4, 6)
    inputs = latents, torch.tensor([300.0, 700.0]), torch.randn(2, 5, 24)
    expected = trained(*inputs, condition)
    state = WanLoraLoaderMixin.lora_state_dict(str(file))
    model.load_lora_adapter(state, prefix="transformer")
    model.fuse_lora()
    joined = torch.cat([latents, condition], 1), *inputs[1:]
    assert torch.allclose(model(*joined, return_dict=False)[0], expected, atol=5e-5)
