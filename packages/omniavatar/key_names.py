"""Names of the same tensors in the original Wan2.1 files and in diffusers / transformers (arithmetic on strings only).

Each table is a list of (pattern, replacement) tried in order; the first match wins and the rest of the name stays.
"""

import re

_DIT = [
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.self_attn\.([qkv])\.", r"\1.attn1.to_\2."),
    (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attn1.to_out.0."),
    (r"^(blocks\.\d+)\.self_attn\.norm_", r"\1.attn1.norm_"),
    (r"^(blocks\.\d+)\.cross_attn\.([qkv])\.", r"\1.attn2.to_\2."),
    (r"^(blocks\.\d+)\.cross_attn\.o\.", r"\1.attn2.to_out.0."),
    (r"^(blocks\.\d+)\.cross_attn\.norm_", r"\1.attn2.norm_"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),  # diffusers counts the norms in another order
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
]

_DIT_BACK = [
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^(blocks\.\d+)\.attn1\.to_([qkv])\.", r"\1.self_attn.\2."),
    (r"^(blocks\.\d+)\.attn1\.to_out\.0\.", r"\1.self_attn.o."),
    (r"^(blocks\.\d+)\.attn1\.norm_", r"\1.self_attn.norm_"),
    (r"^(blocks\.\d+)\.attn2\.to_([qkv])\.", r"\1.cross_attn.\2."),
    (r"^(blocks\.\d+)\.attn2\.to_out\.0\.", r"\1.cross_attn.o."),
    (r"^(blocks\.\d+)\.attn2\.norm_", r"\1.cross_attn.norm_"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
    (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
]

_VAE = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.gamma$", r"\1.norm_out.gamma"),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    (r"^encoder\.downsamples\.", "encoder.down_blocks."),
]

_VAE_RESIDUAL = [
    (r"\.residual\.0\.gamma$", ".norm1.gamma"),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.gamma$", ".norm2.gamma"),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
]

_TEXT_LAYER = r"^blocks\.(\d+)\."
_TEXT = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (_TEXT_LAYER + r"norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (_TEXT_LAYER + r"attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (_TEXT_LAYER + r"pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (_TEXT_LAYER + r"norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (_TEXT_LAYER + r"ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (_TEXT_LAYER + r"ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (_TEXT_LAYER + r"ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]

_AUDIO = [
    (r"^(encoder\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
    (r"^(encoder\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
]


def _rename(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        renamed, count = re.subn(pattern, replacement, name, count=1)
        if count:
            return renamed
    return name


def dit_to_diffusers(name: str) -> str:
    """`blocks.0.self_attn.q.weight` -> `blocks.0.attn1.to_q.weight`; LoRA suffixes pass through."""
    return _rename(name, _DIT)


def dit_to_original(name: str) -> str:
    """`blocks.0.attn1.to_q.weight` -> `blocks.0.self_attn.q.weight`; LoRA suffixes pass through."""
    return _rename(name, _DIT_BACK)


def vae_to_diffusers(name: str) -> str:
    """A tensor name of `Wan2.1_VAE.pth` -> its name in AutoencoderKLWan (two residual blocks per level)."""
    name = _rename(name.removeprefix("model."), _VAE)
    up = re.match(r"^decoder\.upsamples\.(\d+)\.", name)
    if up:
        level, position = divmod(int(up[1]), 4)
        place = f"resnets.{position}" if position < 3 else "upsamplers.0"
        name = f"decoder.up_blocks.{level}.{place}." + name[up.end() :]
    return _rename(name, _VAE_RESIDUAL)


def text_to_transformers(name: str) -> str:
    """A tensor name of the original umT5 encoder file -> its name in UMT5EncoderModel."""
    return _rename(name, _TEXT)


def audio_to_transformers(name: str) -> str:
    """A tensor name of any published wav2vec2 file -> its name in Wav2Vec2Model (older files: other weight norm)."""
    return _rename(name.removeprefix("wav2vec2."), _AUDIO)
