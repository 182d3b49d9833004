import pytest

from omniavatar.model.transformer import AvatarTransformer
from omniavatar.weights.key_names import (
    audio_to_transformers,
    dit_to_diffusers,
    dit_to_original,
    text_to_original,
    text_to_transformers,
    vae_to_diffusers,
    vae_to_original,
)
from tests.omniavatar import original_umt5, original_vae
from tests.omniavatar.conftest import make_umt5, make_vae

DIT = {
    "patch_embedding.weight": "patch_embedding.weight",
    "text_embedding.0.bias": "condition_embedder.text_embedder.linear_1.bias",
    "time_embedding.2.weight": "condition_embedder.time_embedder.linear_2.weight",
    "time_projection.1.weight": "condition_embedder.time_proj.weight",
    "blocks.12.modulation": "blocks.12.scale_shift_table",
    "blocks.1.self_attn.o.weight": "blocks.1.attn1.to_out.0.weight",
    "blocks.1.cross_attn.norm_k.weight": "blocks.1.attn2.norm_k.weight",
    "blocks.0.norm3.weight": "blocks.0.norm2.weight",
    "blocks.0.ffn.0.bias": "blocks.0.ffn.net.0.proj.bias",
    "blocks.30.ffn.2.lora_B.default.weight": "blocks.30.ffn.net.2.lora_B.default.weight",
    "head.head.weight": "proj_out.weight",
    "head.modulation": "scale_shift_table",
}


@pytest.mark.parametrize("original", DIT)
def test_transformer_names_both_ways(original: str) -> None:
    assert dit_to_diffusers(original) == DIT[original]
    assert dit_to_original(DIT[original]) == original


def test_every_transformer_name_survives_the_round_trip(base: AvatarTransformer) -> None:
    names = list(base.dit.state_dict())
    originals = [dit_to_original(name) for name in names]
    assert [dit_to_diffusers(name) for name in originals] == names
    assert len(set(originals)) == len(names) == 177


def test_every_vae_and_text_name_survives_both_round_trips() -> None:
    for ours, theirs, there, back in (
        (make_vae(), original_vae.random_weights(4), vae_to_diffusers, vae_to_original),
        (make_umt5(), original_umt5.random_weights(16, 24, 3, 8, 40, 2), text_to_transformers, text_to_original),
    ):
        names = {name for name in ours.state_dict() if name != "encoder.embed_tokens.weight"}
        assert {there(name) for name in theirs} == names and {back(name) for name in names} == set(theirs)
        assert all(back(there(name)) == name for name in theirs)


def test_other_names() -> None:
    assert (
        vae_to_diffusers("decoder.upsamples.11.resample.1.bias") == "decoder.up_blocks.2.upsamplers.0.resample.1.bias"
    )
    assert vae_to_diffusers("model.decoder.upsamples.12.residual.2.weight") == (
        "decoder.up_blocks.3.resnets.0.conv1.weight"
    )
    assert vae_to_diffusers("encoder.middle.2.residual.6.bias") == "encoder.mid_block.resnets.1.conv2.bias"
    assert text_to_transformers("blocks.23.ffn.gate.0.weight") == (
        "encoder.block.23.layer.1.DenseReluDense.wi_0.weight"
    )
    assert audio_to_transformers("wav2vec2.encoder.pos_conv_embed.conv.weight_g") == (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    )
