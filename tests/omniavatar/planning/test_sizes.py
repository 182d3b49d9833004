import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.untrusted.weight_files import CheckpointError
from miniature.weights import model_paths
from omniavatar.encoders.text import TextEncoder, load_text_encoder, save_text_encoder
from omniavatar.encoders.vae import load_vae
from omniavatar.planning.sizes import AudioSizes, TextSizes, VAESizes, networks_of

PATHS = model_paths()


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_those_of_the_loaded_models(tmp_path: Path) -> None:
    found = networks_of(PATHS)
    encoder: TextEncoder = load_text_encoder(PATHS["text_encoder"], PATHS["tokenizer"])
    config = encoder.model.config
    assert found.text == TextSizes(
        count(encoder.model), config.vocab_size * config.d_model, config.num_layers, config.d_model, config.d_ff,
        config.num_heads, 2,
    )  # fmt: skip
    save_text_encoder(encoder, tmp_path / "umt5.pth", torch.bfloat16, "original")
    assert networks_of({"text_encoder": tmp_path / "umt5.pth"}).text == found.text
    assert found.vae.weights == count(load_vae(PATHS["vae"]).model) and found.vae.patch == 2
    assert (found.transformer.width, found.transformer.rank, found.transformer.audio_dim) == (
        128,
        32,
        found.audio.states,
    )


def test_what_is_not_there_has_the_published_sizes() -> None:
    found = networks_of({"transformer": Path("weights/wan2.1-t2v-1.3b"), "adapter": Path("no"), "vae": None})
    assert (found.transformer.layers, found.transformer.variant, found.transformer.rank) == (30, "lora", 128)
    assert (found.text, found.vae, found.audio) == (TextSizes(), VAESizes(), AudioSizes())
    assert networks_of({}).transformer.layers == 40


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 2.5, True, float("nan"), 10**400, 0])
@pytest.mark.parametrize("role", ["transformer", "adapter", "vae", "audio_encoder"])
def test_odd_settings_are_named_or_of_no_effect(tmp_path: Path, role: str, value: Any) -> None:
    published = json.loads((PATHS[role] / "config.json").read_text())
    for key in published:
        (tmp_path / "config.json").write_text(json.dumps(published | {key: value}))
        try:
            networks_of(PATHS | {role: tmp_path})
        except CheckpointError as error:
            assert key in str(error)


def test_odd_weight_files_are_left_to_the_loaders(tmp_path: Path) -> None:
    scalar, archive, junk = (tmp_path / name for name in ("a.safetensors", "b.pth", "c.pth"))
    names = ("shared.weight", "encoder.x.wi_0.weight", "x.relative_attention_bias.weight", "encoder.conv_in.weight")
    save_file({name: torch.tensor(1.0) for name in names}, scalar)
    zipfile.ZipFile(archive, "w").close()
    torch.save([1, 2], junk)
    for file in (scalar, archive, junk):
        found = networks_of({"text_encoder": file, "vae": file})
        assert (found.text, found.vae) == (TextSizes(), VAESizes())
