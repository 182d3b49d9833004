import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omniavatar.model.adapter import inject_lora, merge_lora
from omniavatar.model.transformer import AvatarTransformer, build_condition, load_base, new_base, to_avatar
from omniavatar.weights.checkpoints import (
    AdapterConfig,
    adapter_tensors,
    load_adapter,
    official_lora_names,
    save_adapter,
    save_base,
    to_official_name,
)
from omniavatar.weights.model_configs import build_empty
from omniavatar.weights.tensor_files import CheckpointError, read_tensors
from tests.omniavatar.conftest import make_avatar, make_base

LORA = AdapterConfig(rank=4, alpha=2.0)


@pytest.fixture
def trained(avatar: AvatarTransformer) -> AvatarTransformer:
    """The avatar model with a LoRA that does something."""
    inject_lora(avatar, LORA.rank, LORA.alpha)
    for name, parameter in avatar.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return avatar


@torch.no_grad()
def output(model: AvatarTransformer) -> Tensor:
    torch.manual_seed(2)
    condition = build_condition(torch.randn(1, 16, 1, 4, 4), 2, 1)
    return model(
        torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 4, 24), condition, torch.randn(1, 5, 64)
    )


def stored(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "pytorch_model.pt", weights_only=True)


def test_names_and_counts_of_the_published_files() -> None:
    assert (len(official_lora_names(40)), len(official_lora_names(30))) == (844, 634)
    names = official_lora_names(40)
    for name in (
        "blocks.0.self_attn.q.lora_A.default.weight",
        "blocks.39.cross_attn.o.lora_B.default.weight",
        "blocks.7.ffn.2.lora_A.default.weight",
        "patch_embedding.weight",
        "audio_proj.norm_out.bias",
        "audio_cond_projs.18.weight",
    ):
        assert name in names
    assert "audio_cond_projs.19.weight" not in names


@pytest.mark.parametrize(
    ("heads", "ffn", "layers", "lora", "total"),
    [(40, 13824, 40, 613_416_960, 618_684_512), (12, 8960, 30, 174_981_120, 177_271_392)],
)
def test_full_size_adapters_have_the_published_shapes(heads: int, ffn: int, layers: int, lora: int, total: int) -> None:
    config = {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": layers}
    model = to_avatar(build_empty(lambda: new_base(config)), 10752)
    build_empty(lambda: inject_lora(model))
    tensors = {to_official_name(name): value for name, value in adapter_tensors(model, "lora").items()}
    assert sorted(tensors) == sorted(official_lora_names(layers))
    assert sum(value.numel() for name, value in tensors.items() if "lora_" in name) == lora
    assert sum(value.numel() for value in tensors.values()) == total
    dim, shapes = heads * 128, {name: tuple(value.shape) for name, value in tensors.items()}
    assert shapes["patch_embedding.weight"] == (dim, 33, 1, 2, 2)
    assert shapes["audio_proj.proj.weight"] == (32, 43008)
    assert shapes["audio_cond_projs.0.weight"] == (dim, 32)
    assert shapes["blocks.3.ffn.0.lora_B.default.weight"] == (ffn, 128)
    assert shapes["blocks.3.ffn.2.lora_A.default.weight"] == (128, ffn)
    assert shapes["blocks.3.cross_attn.v.lora_A.default.weight"] == (128, dim)


def test_config_has_the_published_keys(trained: AvatarTransformer, tmp_path: Path) -> None:
    save_adapter(trained, tmp_path, LORA)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "i2v": True,
        "use_audio": True,
        "random_prefix_frames": True,
        "model_config": {"in_dim": 33},
        "lora_target_modules": "q,k,v,o,ffn.0,ffn.2",
        "init_lora_weights": "kaiming",
        "lora_rank": 4,
        "lora_alpha": 2.0,
        "train_architecture": "lora",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_load_save_is_identical(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_adapter(trained, tmp_path / "a", LORA, dtype)
    loaded = load_adapter(other_base, tmp_path / "a")
    save_adapter(loaded, tmp_path / "b", LORA, dtype)
    assert (tmp_path / "a" / "pytorch_model.pt").read_bytes() == (tmp_path / "b" / "pytorch_model.pt").read_bytes()
    tensors = stored(tmp_path / "a")
    assert sorted(tensors) == sorted(official_lora_names(6))
    assert {value.dtype for value in tensors.values()} == {dtype}


def test_a_loaded_adapter_computes_the_same(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path
) -> None:
    # The base of a fixture is not that of the avatar (its weights were moved): hand it over first.
    frozen = {
        name.replace(".base_layer", ""): value for name, value in trained.state_dict().items() if "lora" not in name
    }
    other_base.load_state_dict({k: v for k, v in frozen.items() if "patch" not in k and "audio" not in k}, strict=False)
    save_adapter(trained, tmp_path, LORA)
    assert torch.equal(output(load_adapter(other_base, tmp_path)), output(trained))


def test_tensors_handed_over_are_saved_like_a_model(trained: AvatarTransformer, tmp_path: Path) -> None:
    save_adapter(trained, tmp_path / "model", LORA)
    save_adapter(adapter_tensors(trained, "lora"), tmp_path / "tensors", LORA)
    files = [tmp_path / name / "pytorch_model.pt" for name in ("model", "tensors")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("architecture", ["full", "frozen_dit"])
def test_other_architectures_come_back(
    avatar: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path, architecture: str
) -> None:
    save_adapter(avatar, tmp_path, AdapterConfig(architecture))
    assert len(stored(tmp_path)) == (len(avatar.state_dict()) if architecture == "full" else 2 + 4 + 4)
    loaded = load_adapter(other_base, tmp_path)
    assert torch.equal(output(loaded), output(avatar)) == (architecture == "full")
    assert torch.equal(loaded.audio_proj.proj.weight, avatar.audio_proj.proj.weight)


def test_a_merged_model_is_a_full_official_file(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path
) -> None:
    expected = output(trained)
    full = AdapterConfig("full")
    with pytest.raises(ValueError, match="call merge_lora first"):
        save_adapter(trained, tmp_path, full)
    merge_lora(trained)
    save_adapter(trained, tmp_path, full)
    assert set(stored(tmp_path)) == {to_official_name(name) for name in make_avatar().state_dict()}
    assert (output(load_adapter(other_base, tmp_path)) - expected).abs().max() < 2e-5


def test_bases_come_back_from_both_layouts_as_they_were(base: AvatarTransformer, tmp_path: Path) -> None:
    save_base(base, tmp_path / "a", layout="original", shard_size=100_000)
    assert (tmp_path / "a" / "diffusion_pytorch_model-00001-of-00004.safetensors").exists()
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {
        "_class_name": "WanModel", "model_type": "t2v", "dim": 32, "num_heads": 2, "in_dim": 16, "out_dim": 16,
        "text_dim": 24, "text_len": 512, "freq_dim": 32, "ffn_dim": 48, "num_layers": 6, "eps": 1e-6,
    }  # fmt: skip
    save_base(load_base(tmp_path / "a"), tmp_path / "b", shard_size=100_000)
    save_base(load_base(tmp_path / "b"), tmp_path / "c", layout="original")
    first, last = dict(read_tensors(tmp_path / "a")), dict(read_tensors(tmp_path / "c"))
    assert first.keys() == last.keys() == {to_official_name(name) for name in base.state_dict()}
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_a_base_the_original_layout_cannot_describe_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot represent .*'cross_attn_norm': False"):
        save_base(make_base(cross_attn_norm=False), tmp_path, layout="original")
    assert not list(tmp_path.iterdir())


DAMAGE = {
    "missing": lambda state: state.pop("audio_cond_projs.1.bias"),
    "unexpected": lambda state: state.update({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 32)}),
    "shape": lambda state: state.update({"blocks.2.ffn.0.lora_B.default.weight": torch.zeros(47, 4)}),
    "broken": lambda state: state["patch_embedding.bias"].fill_(float("nan")),
    "type": lambda state: state.update({"patch_embedding.bias": torch.zeros(32, dtype=torch.int64)}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_has_its_own_error(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path, kind: str
) -> None:
    save_adapter(trained, tmp_path, LORA)
    state = stored(tmp_path)
    before = set(state)
    DAMAGE[kind](state)
    torch.save(state, tmp_path / "pytorch_model.pt")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(other_base, tmp_path)
    (problem,) = caught.value.problems
    name = {"missing": "audio_cond_projs.1.bias", "shape": "blocks.2.ffn.0.lora_B.default.weight"}
    assert problem.startswith(f"{kind}: {name.get(kind, next(iter(set(state) - before), 'patch_embedding.bias'))}")


def test_a_renamed_key_is_both_missing_and_unexpected(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path
) -> None:
    save_adapter(trained, tmp_path, LORA)
    state = {name.replace(".default.", "."): value for name, value in stored(tmp_path).items()}
    torch.save(state, tmp_path / "pytorch_model.pt")
    with pytest.raises(CheckpointError, match="240 problem"):
        load_adapter(other_base, tmp_path)


class Code:
    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def test_code_in_a_weight_file_is_refused(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_adapter(trained, tmp_path, LORA)
    torch.save({"patch_embedding.weight": Code()}, tmp_path / "pytorch_model.pt")
    with pytest.raises(CheckpointError, match="code in weight files is refused"):
        load_adapter(other_base, tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_an_incomplete_or_broken_set_is_not_saved(trained: AvatarTransformer, tmp_path: Path) -> None:
    tensors = adapter_tensors(trained, "lora")
    del tensors["dit.blocks.3.attn2.to_out.0.lora_A.default.weight"]
    tensors["dit.patch_embedding.bias"] = torch.full((32,), float("inf"))
    with pytest.raises(CheckpointError) as caught:
        save_adapter(tensors, tmp_path, LORA)
    assert [problem.split(" ")[:2] for problem in caught.value.problems] == [
        ["missing:", "blocks.3.cross_attn.o.lora_A.default.weight"],
        ["broken:", "patch_embedding.bias"],
    ]
    assert not list(tmp_path.iterdir())


def test_foreign_configs_and_missing_files_are_refused(
    trained: AvatarTransformer, other_base: AvatarTransformer, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="pytorch_model.pt does not exist"):
        load_adapter(other_base, tmp_path)
    save_adapter(trained, tmp_path, LORA)
    (tmp_path / "config.json").write_text('{"lora_target_modules": "q,k", "train_architecture": "dora"}')
    with pytest.raises(CheckpointError) as caught:
        load_adapter(other_base, tmp_path)
    assert len(caught.value.problems) == 2


def test_only_plain_models_are_saved_as_bases(trained: AvatarTransformer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use save_adapter"):
        save_base(trained, tmp_path)
