from pathlib import Path

import torch

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
