import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from omniavatar.config import AudioEntry
from omniavatar.model.transformer import AvatarTransformer, build_condition, load_base, new_base, to_avatar
from omniavatar.weights.checkpoints import save_base, to_official_name
from omniavatar.weights.model_configs import build_empty
from omniavatar.weights.tensor_files import CheckpointError

WAN = {
    "14B": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
}


def inputs(batch: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        "latents": torch.randn(batch, 16, 4, 4, 6),
        "timestep": torch.tensor([990.0, 500.0, 12.5])[:batch],
        "text": torch.randn(batch, 5, 24),
        "condition": build_condition(torch.randn(batch, 16, 1, 4, 6), 4, torch.tensor([1, 2, 4])[:batch]),
        "audio": torch.randn(batch, 13, 64),
    }


@torch.no_grad()
@pytest.mark.parametrize("with_audio", [True, False])
def test_a_batch_in_which_everything_differs_equals_its_samples(
    any_avatar: AvatarTransformer, with_audio: bool
) -> None:
    given = inputs()
    if not with_audio:
        del given["audio"]
    together = any_avatar(**given)
    alone = torch.cat([any_avatar(**{name: x[i : i + 1] for name, x in given.items()}) for i in range(3)])
    assert together.std() > 0.1
    assert (together - alone).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("entry", get_args(AudioEntry))
def test_a_fresh_avatar_model_equals_its_base_exactly(base: AvatarTransformer, entry: AudioEntry) -> None:
    given = inputs()
    plain = base(given["latents"], given["timestep"], given["text"])
    to_avatar(base, audio_dim=64, entry=entry)
    assert torch.equal(base(**given), plain)


@pytest.mark.parametrize("entry", get_args(AudioEntry))
def test_gradients_reach_new_channels_and_audio_layers_at_once(base: AvatarTransformer, entry: AudioEntry) -> None:
    to_avatar(base, audio_dim=64, entry=entry)
    base(**inputs()).pow(2).mean().backward()
    assert base.dit.patch_embedding.weight.grad[:, 16:].abs().sum() > 0
    last = "o.weight" if entry == "cross_attention" else "weight"
    assert all(layer.get_parameter(last).grad.abs().sum() > 0 for layer in base.audio_cond_projs)


def test_autocast_runs_and_stays_near_float32(any_avatar: AvatarTransformer) -> None:
    exact = any_avatar(**inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = any_avatar(**inputs())
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_rounded_timesteps_are_those_of_bfloat16(base: AvatarTransformer) -> None:
    given = inputs(1)
    base.round_timestep = True
    rounded = base(given["latents"], torch.tensor([991.74]), given["text"])
    base.round_timestep = False
    assert torch.equal(rounded, base(given["latents"], torch.tensor([992.0]), given["text"]))
    assert not torch.equal(rounded, base(given["latents"], torch.tensor([991.74]), given["text"]))


def test_the_mask_is_zero_where_latents_are_given() -> None:
    reference = torch.randn(2, 16, 1, 2, 2)
    condition = build_condition(reference, 4, torch.tensor([1, 3]))
    assert condition.shape == (2, 17, 4, 2, 2)
    assert condition[:, 16, :, 0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert torch.equal(condition[:, :16, 3], reference[:, :, 0])


def test_inputs_of_the_other_kind_are_refused(base: AvatarTransformer, avatar: AvatarTransformer) -> None:
    given = inputs()
    with pytest.raises(ValueError, match="plain base takes no condition"):
        base(**given)
    with pytest.raises(ValueError, match="needs a condition"):
        avatar(given["latents"], given["timestep"], given["text"])
    with pytest.raises(ValueError, match="9 audio frames; 4 latent frames need 13"):
        avatar(**given | {"audio": given["audio"][:, :9]})


@pytest.mark.parametrize(
    ("size", "plain", "wide", "tensors", "with_audio"),
    [
        ("1.3B", 1_418_996_800, 1_419_101_248, 825, 857),
        ("14B", 14_288_491_584, 14_288_839_744, 1_095, 1_137),
    ],
)
def test_published_sizes(size: str, plain: int, wide: int, tensors: int, with_audio: int) -> None:
    model = build_empty(lambda: new_base(WAN[size]))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == (plain, tensors)
    to_avatar(model, 10752)
    assert sum(p.numel() for p in model.dit.parameters()) == wide
    assert len(model.state_dict()) == with_audio
    trained = {name: p for name, p in model.named_parameters() if "patch_embedding" in name or "audio" in name}
    expected = {"1.3B": (34, 2_290_272), "14B": (44, 5_267_552)}[size]
    assert (len(trained), sum(p.numel() for p in trained.values())) == expected


@torch.no_grad()
def test_base_folders_load_in_both_layouts(base: AvatarTransformer, tmp_path: Path) -> None:
    given = inputs()
    expected = base(given["latents"], given["timestep"], given["text"])
    save_base(base, tmp_path / "diffusers")
    again = load_base(tmp_path / "diffusers")
    assert torch.equal(again(given["latents"], given["timestep"], given["text"]), expected)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers")
    stock = theirs(given["latents"], given["timestep"], given["text"], return_dict=False)[0]
    assert (stock - expected).abs().max() < 5e-5  # its sinusoid of the timestep is float32

    original = tmp_path / "original"
    original.mkdir()
    sizes = {"dim": 32, "num_heads": 2, "ffn_dim": 48, "num_layers": 6, "freq_dim": 32, "text_dim": 24}
    (original / "config.json").write_text(json.dumps({"_class_name": "WanModel", "in_dim": 16, "out_dim": 16, **sizes}))
    state = {to_official_name(name): value for name, value in base.state_dict().items()}
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, original / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (original / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    renamed = load_base(original)
    assert torch.equal(renamed(given["latents"], given["timestep"], given["text"]), expected)


def test_bfloat16_base_keeps_what_must_stay_float32(base: AvatarTransformer, tmp_path: Path) -> None:
    save_base(base, tmp_path)
    half = load_base(tmp_path, torch.bfloat16)
    assert half.dit.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.dit.blocks[0].norm2.weight.dtype == half.dit.scale_shift_table.dtype == torch.float32
    given = inputs()
    with torch.no_grad():
        exact = base(given["latents"], given["timestep"], given["text"])
        rough = half(given["latents"], given["timestep"], given["text"])
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_wrong_base_file_is_refused_with_every_problem(base: AvatarTransformer, tmp_path: Path) -> None:
    save_base(base, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    state = load_file(file)
    state["extra.weight"] = state.pop("proj_out.bias")
    state["scale_shift_table"] = torch.zeros(1, 2, 31)
    state["blocks.0.attn1.to_q.bias"][3] = float("nan")
    save_file(state, file)
    with pytest.raises(CheckpointError) as caught:
        load_base(tmp_path)
    kinds = sorted(problem.split(" ")[0] + problem.split(" ")[1] for problem in caught.value.problems)
    assert kinds == [
        "broken:blocks.0.attn1.to_q.bias",
        "missing:proj_out.bias",
        "shape:scale_shift_table",
        "unexpected:extra.weight",
    ]


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_base(tmp_path)
