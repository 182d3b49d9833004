"""Files of the published weights by role: layouts, names, shapes and types of their tensors, without any values."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2ForCTC

from common.errors import InputError
from omniavatar.config import PUBLISHED_NEGATIVE_PROMPT
from omniavatar.model.adapter import inject_lora
from omniavatar.model.transformer import AvatarTransformer, base_config, new_base, to_avatar
from omniavatar.planning.sizes import PUBLISHED
from omniavatar.weights.checkpoints import AdapterConfig, adapter_tensors, to_official_name
from omniavatar.weights.key_names import dit_to_original, text_to_original, vae_to_original
from omniavatar.weights.model_configs import build_empty

FEWEST_BLOCKS = 4  # of the transformer: with fewer no block of the first half gets audio
TRANSFORMER_SHARDS = {"wan2.1-t2v-14b": 6}  # the published 1.3B is one file
SHARD_BYTES = 10_000_000_000  # of the published shards, at most
PROMPT = "A woman in a red coat speaks to the camera and moves her hands. A bright room with a window and plants."
Tensors = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name in the file -> shape and type, in the order of the file."""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the models of generation; the defaults are those of the 1.3B recipe."""

    width: int = 1536
    heads: int = 12
    ffn: int = 8960
    layers: int = 30
    shards: int = 1
    text_width: int = 4096
    text_heads: int = 64
    text_ffn: int = 10_240
    text_layers: int = 24
    vocabulary: int = 256_384
    pieces: int = 256_300  # of the tokenizer; the embedding is padded beyond them
    vae_width: int = 96
    audio_width: int = 768
    audio_layers: int = 12
    audio_channels: int = 512

    def shallower(self, layers: int, text_layers: int) -> "Sizes":
        """The same widths with at most so many blocks of transformer and text encoder."""
        return replace(self, layers=min(self.layers, layers), text_layers=min(self.text_layers, text_layers))

    @property
    def audio_dim(self) -> int:
        """Width of the audio states that the adapter takes."""
        return (self.audio_layers + 2) * self.audio_width


@dataclass(frozen=True)
class WeightFile:
    """A file of a role: its path inside the folder of its entry, and its tensors or its text."""

    path: str
    tensors: Tensors = field(default_factory=dict)
    text: str = ""

    @property
    def bytes(self) -> int:
        """Size on disk without headers, which are under a thousandth."""
        tensors = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())
        return tensors or len(self.text.encode())


def published_sizes(entry: str) -> Sizes:
    """Sizes of the models that are published with a base. Raises InputError for a name that no base has."""
    if entry not in PUBLISHED:
        raise InputError(f"The shapes of {entry!r} are not known; expected one of {', '.join(PUBLISHED)}.")
    config = PUBLISHED[entry]
    dim, heads, ffn, layers = (config[key] for key in ("dim", "num_heads", "ffn_dim", "num_layers"))
    return Sizes(dim, heads, ffn, layers, TRANSFORMER_SHARDS.get(entry, 1))


def sizes_of(transformer: Path) -> Sizes:
    """Sizes of models that fit a transformer which is there. Raises what `base_config` raises."""
    config = base_config(transformer)
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    text = config.get("text_dim", 4096)
    return Sizes(heads * head, heads, config["ffn_dim"], config["num_layers"], 1, text, max(1, text // 64))


@cache
def files_of(role: str, sizes: Sizes) -> tuple[WeightFile, ...]:
    """The files of one role of generation as published, at these sizes."""
    return tuple(_FILES[role](sizes))


def _empty_base(sizes: Sizes) -> AvatarTransformer:
    arguments = {
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sizes.width // sizes.heads,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": sizes.text_width,
        "ffn_dim": sizes.ffn,
        "num_layers": sizes.layers,
    }
    return build_empty(lambda: new_base(arguments))


def _transformer(sizes: Sizes) -> list[WeightFile]:
    """`config.json` and float32 safetensors, with an index where they are sharded."""
    config: dict[str, Any] = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": sizes.width}
    config |= {"eps": 1e-06, "ffn_dim": sizes.ffn, "freq_dim": 256, "in_dim": 16, "model_type": "t2v"}
    config |= {"num_heads": sizes.heads, "num_layers": sizes.layers, "out_dim": 16, "text_len": 512}
    if sizes.text_width != 4096:  # the published file leaves it out
        config["text_dim"] = sizes.text_width
    state = _empty_base(sizes).dit.state_dict()
    tensors = {dit_to_original(name): (tuple(value.shape), torch.float32) for name, value in state.items()}
    files = [WeightFile("config.json", text=json.dumps(config, indent=2))]
    stem = "diffusion_pytorch_model"
    if sizes.shards == 1:
        return [*files, WeightFile(f"{stem}.safetensors", tensors)]
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in tensors.items()}
    total, largest = sum(each.nbytes for each in empty.values()), max(each.nbytes for each in empty.values())
    most = min(SHARD_BYTES, total // sizes.shards + largest)  # as many shards of a model that was cut in depth
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=most
    )
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    shards = [WeightFile(file, {n: tensors[n] for n in names}) for file, names in split.filename_to_tensors.items()]
    return [*files, *shards, WeightFile(f"{stem}.safetensors.index.json", text=json.dumps(index, indent=2))]


def _vae(sizes: Sizes) -> list[WeightFile]:
    model = build_empty(lambda: AutoencoderKLWan.from_config({"base_dim": sizes.vae_width}))
    return [WeightFile("Wan2.1_VAE.pth", _renamed(model.state_dict(), vae_to_original, torch.float32))]


def _text_encoder(sizes: Sizes) -> list[WeightFile]:
    config = UMT5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.text_width,
        d_kv=sizes.text_width // sizes.text_heads,
        d_ff=sizes.text_ffn,
        num_layers=sizes.text_layers,
        num_heads=sizes.text_heads,
        feed_forward_proj="gated-gelu",
    )
    state = build_empty(lambda: UMT5EncoderModel(config)).state_dict()
    state = {name: value for name, value in state.items() if name != "encoder.embed_tokens.weight"}  # tied
    return [WeightFile("models_t5_umt5-xxl-enc-bf16.pth", _renamed(state, text_to_original, torch.bfloat16))]


def _tokenizer(sizes: Sizes) -> list[WeightFile]:
    """A unigram tokenizer of the published size: the words of our prompts, letters, and pieces that no text has."""
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", f"{PROMPT} {PUBLISHED_NEGATIVE_PROMPT}"))
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in words] + [(chr(code), -10.0) for code in range(33, 127)]
    pieces += [(f"▁<unused {number}>", -20.0) for number in range(sizes.pieces - len(pieces))]
    model = {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": pieces[number][0], **special} for number in range(3)]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    ending = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, ending],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, ending, {"Sequence": {"id": "B", "type_id": 0}}, ending],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
    }
    whole |= {"pre_tokenizer": space, "post_processor": processor, "decoder": space, "model": model}
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    settings = {**names, "model_max_length": 10**30, "tokenizer_class": "T5Tokenizer"}
    folder = "google/umt5-xxl"
    return [
        WeightFile(f"{folder}/tokenizer.json", text=json.dumps(whole, ensure_ascii=False)),
        WeightFile(f"{folder}/tokenizer_config.json", text=json.dumps(settings, indent=2)),
    ]


def _adapter(sizes: Sizes) -> list[WeightFile]:
    model = _empty_base(sizes)
    with torch.device("meta"):
        to_avatar(model, sizes.audio_dim)
    build_empty(partial(inject_lora, model))
    tensors = _renamed(adapter_tensors(model, "lora"), to_official_name, torch.float32)
    config = AdapterConfig().to_json(in_channels=33)
    return [WeightFile("config.json", text=json.dumps(config, indent=2)), WeightFile("pytorch_model.pt", tensors)]


def _audio_encoder(sizes: Sizes) -> list[WeightFile]:
    """A CTC model whose weight norm has the names of older libraries, as facebook/wav2vec2-base-960h."""
    own: dict[str, Any] = {"hidden_size": sizes.audio_width, "num_hidden_layers": sizes.audio_layers}
    own |= {"intermediate_size": 4 * sizes.audio_width, "conv_dim": (sizes.audio_channels,) * 7}
    config = Wav2Vec2Config(**own, architectures=["Wav2Vec2ForCTC"])
    state = build_empty(lambda: Wav2Vec2ForCTC(config)).state_dict()
    state = {name: value for name, value in state.items() if not name.endswith("masked_spec_embed")}
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def name_then(name: str) -> str:
        return next((name.replace(now, then) for now, then in older.items() if name.endswith(now)), name)

    return [
        WeightFile("config.json", text=config.to_json_string()),
        WeightFile("preprocessor_config.json", text=json.dumps({"do_normalize": True, "sampling_rate": 16_000})),
        WeightFile("model.safetensors", _renamed(state, name_then, torch.float32)),
    ]


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str], dtype: torch.dtype) -> Tensors:
    return {rename(name): (tuple(value.shape), dtype) for name, value in state.items()}


_FILES: Mapping[str, Callable[[Sizes], list[WeightFile]]] = {
    "transformer": _transformer,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "tokenizer": _tokenizer,
    "audio_encoder": _audio_encoder,
    "adapter": _adapter,
}
