"""Names of the same tensors in the original Wan2.1 files and in diffusers / transformers (arithmetic on strings only).

Each table is a list of pairs of prefixes, read in either direction; "#" stands for a number, the first match wins, and
the rest of the name stays. No two rows share a side, so no two names become one.
"""

import re
from collections.abc import Sequence

Table = Sequence[tuple[str, str]]

_ATTENTION = [(f"blocks.#.{part}_attn.", f"blocks.#.attn{number}.") for number, part in ((1, "self"), (2, "cross"))]
_DIT: Table = [
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.head.", "proj_out."),
    ("head.modulation", "scale_shift_table"),
    ("blocks.#.modulation", "blocks.#.scale_shift_table"),
    *[(f"{theirs}{name}.", f"{ours}to_{name}.") for theirs, ours in _ATTENTION for name in "qkv"],
    *[(f"{theirs}o.", f"{ours}to_out.0.") for theirs, ours in _ATTENTION],
    *[(f"{theirs}norm_", f"{ours}norm_") for theirs, ours in _ATTENTION],
    ("blocks.#.norm3.", "blocks.#.norm2."),  # diffusers counts the norms in another order
    ("blocks.#.ffn.0.", "blocks.#.ffn.net.0.proj."),
    ("blocks.#.ffn.2.", "blocks.#.ffn.net.2."),
]

_HALVES = ("encoder", "decoder")
_VAE: Table = [
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    *[(f"{half}.conv1.", f"{half}.conv_in.") for half in _HALVES],
    *[(f"{half}.head.0.gamma", f"{half}.norm_out.gamma") for half in _HALVES],
    *[(f"{half}.head.2.", f"{half}.conv_out.") for half in _HALVES],
    *[(f"{half}.middle.1.", f"{half}.mid_block.attentions.0.") for half in _HALVES],
]
# The decoder's list is flat in the original: three residual blocks and a resampling per level.
_UPSAMPLING = [
    (f"decoder.upsamples.{4 * level + place}.", f"decoder.up_blocks.{level}.{module}.")
    for level in range(4)
    for place, module in enumerate(("resnets.0", "resnets.1", "resnets.2", "upsamplers.0"))
]
_VAE_PLACES: Table = [
    *[(f"{half}.middle.{2 * number}.", f"{half}.mid_block.resnets.{number}.") for half in _HALVES for number in (0, 1)],
    ("encoder.downsamples.#.", "encoder.down_blocks.#."),
    *_UPSAMPLING,
]
_VAE_PARTS: Table = [
    ("residual.0.gamma", "norm1.gamma"),
    ("residual.2.", "conv1."),
    ("residual.3.gamma", "norm2.gamma"),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
]

_TEXT: Table = [
    ("token_embedding.", "shared."),
    ("norm.", "encoder.final_layer_norm."),
    ("blocks.#.norm1.", "encoder.block.#.layer.0.layer_norm."),
    ("blocks.#.pos_embedding.embedding.", "encoder.block.#.layer.0.SelfAttention.relative_attention_bias."),
    ("blocks.#.attn.", "encoder.block.#.layer.0.SelfAttention."),
    ("blocks.#.norm2.", "encoder.block.#.layer.1.layer_norm."),
    ("blocks.#.ffn.gate.0.", "encoder.block.#.layer.1.DenseReluDense.wi_0."),
    ("blocks.#.ffn.fc1.", "encoder.block.#.layer.1.DenseReluDense.wi_1."),
    ("blocks.#.ffn.fc2.", "encoder.block.#.layer.1.DenseReluDense.wo."),
]

_WEIGHT_NORM = "encoder.pos_conv_embed.conv."
_AUDIO: Table = [
    (f"{_WEIGHT_NORM}weight_g", f"{_WEIGHT_NORM}parametrizations.weight.original0"),
    (f"{_WEIGHT_NORM}weight_v", f"{_WEIGHT_NORM}parametrizations.weight.original1"),
]


def _split(name: str, table: Table) -> tuple[str, str]:
    """The new prefix of a name and the rest of it; ("", name) when no row applies."""
    for old, new in table:
        match = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if match:
            return new.replace("#", match[1]) if "#" in old else new, name[match.end() :]
    return "", name


def _rename(name: str, table: Table) -> str:
    return "".join(_split(name, table))


def _back(table: Table) -> Table:
    return [(new, old) for old, new in table]


def _rename_vae(name: str, whole: Table, places: Table, parts: Table) -> str:
    place, rest = _split(name, places)
    return place + _rename(rest, parts) if place else _rename(name, whole)


def dit_to_diffusers(name: str) -> str:
    """`blocks.0.self_attn.q.weight` -> `blocks.0.attn1.to_q.weight`; LoRA suffixes pass through."""
    return _rename(name, _DIT)


def dit_to_original(name: str) -> str:
    """`blocks.0.attn1.to_q.weight` -> `blocks.0.self_attn.q.weight`; LoRA suffixes pass through."""
    return _rename(name, _back(_DIT))


def vae_to_diffusers(name: str) -> str:
    """A tensor name of `Wan2.1_VAE.pth` -> its name in AutoencoderKLWan (two residual blocks per level)."""
    return _rename_vae(name.removeprefix("model."), _VAE, _VAE_PLACES, _VAE_PARTS)


def vae_to_original(name: str) -> str:
    """The inverse of `vae_to_diffusers`, for the Wan2.1 topology."""
    return _rename_vae(name, _back(_VAE), _back(_VAE_PLACES), _back(_VAE_PARTS))


def text_to_transformers(name: str) -> str:
    """A tensor name of the original umT5 encoder file -> its name in UMT5EncoderModel."""
    return _rename(name, _TEXT)


def text_to_original(name: str) -> str:
    """The inverse of `text_to_transformers`; `encoder.embed_tokens.weight` has no name there, it is `shared.weight`."""
    return _rename(name, _back(_TEXT))


def audio_to_transformers(name: str) -> str:
    """A tensor name of any published wav2vec2 file -> its name in Wav2Vec2Model (older files: other weight norm)."""
    return _rename(name.removeprefix("wav2vec2."), _AUDIO)
