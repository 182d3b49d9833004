import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from miniature.weights import model_paths
from omniavatar.model.transformer import load_base
from omniavatar.weights.checkpoints import load_adapter
from omniavatar.weights.tensor_files import read_tensors
from pipelines.models.export import LAYOUTS, export, stored_type

SHIPPED = model_paths()


def _same(first: Path, second: Path) -> bool:
    one, other = dict(read_tensors(first)), dict(read_tensors(second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("role", "plain"), [("transformer", "diffusers"), ("text_encoder", "transformers")])
def test_there_and_back_is_the_same_tensors_in_the_same_type(role, plain, tmp_path):
    there = export(role, "original", SHIPPED, tmp_path / "there.pth")
    assert there.facts.startswith(f"{len(dict(read_tensors(SHIPPED[role])))} tensors") and "bfloat16" in there.facts
    assert not _same(SHIPPED[role], tmp_path / "there.pth")
    export(role, plain, {role: tmp_path / "there.pth"}, tmp_path / "back")
    assert _same(SHIPPED[role], tmp_path / "back") and sorted(os.listdir(tmp_path)) == ["back", "there.pth"]


def test_a_vae_goes_into_the_one_file_of_the_original_and_back(tmp_path):
    AutoencoderKLWan(base_dim=4).save_pretrained(tmp_path / "vae")
    export("vae", "original", {"vae": tmp_path / "vae"}, tmp_path / "Wan2.1_VAE.pth")
    assert "encoder.conv1.weight" in torch.load(tmp_path / "Wan2.1_VAE.pth", weights_only=True)
    export("vae", "diffusers", {"vae": tmp_path / "Wan2.1_VAE.pth"}, tmp_path / "back")
    assert _same(tmp_path / "vae", tmp_path / "back")


def test_a_model_that_a_layout_cannot_say_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="original layout cannot represent"):
        export("vae", "original", SHIPPED, tmp_path / "Wan2.1_VAE.pth")
    assert os.listdir(tmp_path) == []


def test_an_adapter_in_another_type_keeps_its_names(tmp_path):
    finding = export("adapter", "official", SHIPPED, tmp_path / "wide", torch.float32)
    assert "float32" in finding.facts and finding.path == tmp_path / "wide"
    one, other = (dict(read_tensors(path / "pytorch_model.pt")) for path in (SHIPPED["adapter"], tmp_path / "wide"))
    assert one.keys() == other.keys() and all(torch.equal(one[name].float(), other[name]) for name in one)


def test_a_merged_adapter_computes_what_both_did(tmp_path):
    export("adapter", "merged", SHIPPED, tmp_path / "merged", torch.float32)
    separate = load_adapter(load_base(SHIPPED["transformer"]), SHIPPED["adapter"])
    merged = load_adapter(load_base(SHIPPED["transformer"]), tmp_path / "merged")
    assert not any(".lora_" in name for name in merged.state_dict())
    generator = torch.Generator().manual_seed(0)
    channels, dim = separate.dit.config.in_channels, separate.dit.config.text_dim
    given = (
        torch.randn(1, 16, 3, 8, 8, generator=generator),
        torch.tensor([500.0]),
        torch.randn(1, 4, dim, generator=generator),
        torch.randn(1, channels - 16, 3, 8, 8, generator=generator),
        torch.randn(1, 9, separate.audio_dim, generator=generator),
    )
    with torch.no_grad():
        apart, together, deaf = separate(*given), merged(*given), merged(*given[:4])
    assert (apart - together).abs().max() < 1e-4 < (together - deaf).abs().max()


def test_the_widest_stored_type_is_kept():
    assert stored_type(SHIPPED["transformer"]) == stored_type(SHIPPED["adapter"]) == torch.bfloat16
    assert stored_type(SHIPPED["audio_encoder"]) == torch.float32


@pytest.mark.parametrize(
    ("role", "layout", "paths", "words"),
    [
        (
            "sync_scorer",
            "original",
            SHIPPED,
            "sync_scorer cannot be exported as 'original'; expected transformer",
        ),
        ("vae", "official", SHIPPED, "vae as diffusers or original"),
        ("vae", "diffusers", {}, "no weights for vae"),
        ("adapter", "merged", {"adapter": SHIPPED["adapter"]}, "Merging needs the transformer too"),
    ],
)
def test_what_cannot_be_done_is_stated(role, layout, paths, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(role, layout, paths, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("work of a night")
    with pytest.raises(FileExistsError, match="mine exists; nothing is overwritten"):
        export("adapter", "official", SHIPPED, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "work of a night"


def test_every_layout_is_tried_above():
    assert {role: set(layouts) for role, layouts in LAYOUTS.items()} == {
        "transformer": {"diffusers", "original"},
        "vae": {"diffusers", "original"},
        "text_encoder": {"transformers", "original"},
        "adapter": {"official", "merged"},
    }
