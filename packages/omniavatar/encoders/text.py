"""The frozen umT5 encoder: prompts -> one vector per token, without padding."""

import copy
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from common.errors import InputError, MissingFileError, load_reason
from omniavatar.parallel.block_offload import stream_blocks
from omniavatar.weights.key_names import text_to_original, text_to_transformers
from omniavatar.weights.tensor_files import (
    NamedTensors,
    build_empty,
    fill_module,
    read_tensors,
    refuse_broken,
    refuse_unsaid,
    weights_file,
    write_shards,
    write_torch_file,
)

LONGEST_TEXT = 512
_TIED = frozenset({"encoder.embed_tokens.weight"})
# The config keys that determine the output of a umT5 encoder.
_SIZES = ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"]
_SIZES += ["relative_attention_num_buckets", "relative_attention_max_distance"]


def clean_text(text: str) -> str:
    """Repair mis-decoded characters, resolve HTML entities (twice, as Wan does) and collapse white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class TextEncoder:
    """umT5 and its tokenizer. Padding is not part of its output: `pad_text` adds the zeros."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        # Tokenizers without a maximum length report a huge number.
        self.text_length = min(int(tokenizer.model_max_length), LONGEST_TEXT)
        self.dim: int = model.config.d_model
        self.device: torch.device | None = None  # of the computation, where the weights are elsewhere

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 16) -> list[Tensor]:
        """Prompts -> float32 (n, dim) each, n <= text_length tokens including the closing one, in the same order.

        Prompts of similar length share a batch, so little is computed on padding.
        """
        ids = [self._tokens(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        encoded: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer.pad({"input_ids": [ids[index] for index in chosen]}, return_tensors="pt")
            batch = batch.to(self.device or self.model.device)
            states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0].float()
            for row, index in enumerate(chosen):
                encoded[index] = states[row][batch["attention_mask"][row].bool()].clone()
        return [encoded[index] for index in range(len(ids))]

    def _tokens(self, prompt: str) -> list[int]:
        return self.tokenizer(clean_text(prompt), truncation=True, max_length=self.text_length)["input_ids"]


def stream_text_encoder(encoder: TextEncoder, device: torch.device, dtype: torch.dtype) -> None:
    """Compute on `device` from weights that stay where they are, in the map of their file: one block at a time is
    copied, and of the embedding only the tokens' rows. The output is that of the whole encoder on `device`."""
    model = encoder.model
    encoder.device = device
    model.shared.register_forward_pre_hook(lambda module, ids: (ids[0].to(module.weight.device),))
    model.shared.register_forward_hook(lambda module, ids, rows: rows.to(device, dtype))
    stream_blocks(model, list(model.encoder.block), device, dtype, mapped=[model.shared])


def pad_text(texts: Sequence[Tensor], length: int) -> Tensor:
    """[(n, dim)] -> (B, length, dim), zeros after each text: what Wan's unmasked cross-attention was trained on.

    Raises ValueError when a text is longer than `length`.
    """
    longest = max(len(text) for text in texts)
    if longest > length:
        raise InputError(f"A text of {longest} tokens does not fit into {length}; encode it with this length.")
    padded = texts[0].new_zeros(len(texts), length, texts[0].shape[1])
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    return padded


def load_text_encoder(
    text_encoder: Path | str,
    tokenizer: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mapped: bool = False,
) -> TextEncoder:
    """Load from a transformers folder or an original `models_t5_umt5-xxl-enc-bf16.pth`, and a tokenizer folder.

    On device "meta" only headers are read and checked. With `mapped` the weights stay maps of their file, of the type
    they have there, for `stream_text_encoder`. Raises FileNotFoundError, CheckpointError.
    """
    text_encoder, tokenizer = Path(text_encoder), Path(tokenizer)
    if not tokenizer.is_dir():
        raise MissingFileError(f"{tokenizer} is not a folder; expected a tokenizer as saved by transformers.")
    if text_encoder.is_dir():
        if not (text_encoder / "config.json").exists():
            raise MissingFileError(f"{text_encoder} has no config.json; expected a transformers umT5 folder.")
        config = UMT5Config.from_pretrained(text_encoder, local_files_only=True)
        tensors: NamedTensors = read_tensors(text_encoder, device)
    else:
        renamed = {text_to_transformers(name): tensor for name, tensor in read_tensors(text_encoder, device)}
        config, tensors = _config_from_original(renamed), renamed.items()
    model = build_empty(lambda: UMT5EncoderModel(config))
    name_in_file = str if text_encoder.is_dir() else text_to_original
    fill_module(model, tensors, text_encoder, lambda name: dtype, _TIED, name_in_file, mapped)
    if mapped:
        refuse_broken(model, weights_file(text_encoder), name_in_file)
    model.set_input_embeddings(model.shared)
    model.to(device).eval().requires_grad_(False)
    return TextEncoder(model, load_tokenizer(tokenizer))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer folder of transformers; code that lies in it is never run. Raises InputError."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        reason = load_reason(folder, error)
        raise InputError(f"{folder} is not a tokenizer of transformers ({reason}); expected its folder.") from error


def save_text_encoder(
    encoder: TextEncoder,
    path: Path | str,
    dtype: torch.dtype | None = None,
    layout: Literal["transformers", "original"] = "transformers",
) -> None:
    """Write umT5 as a transformers folder, or as the one `.pth` file of the original layout, without the tokenizer.

    Raises ValueError when the original layout, which has no config, cannot represent this model; CheckpointError for
    NaN, DiskFullError.
    """
    path, config = Path(path), encoder.model.config
    state = {name: tensor for name, tensor in encoder.model.state_dict().items() if name not in _TIED}
    if layout == "original":
        read_back = _config_from_original(state)
        refuse_unsaid({key: getattr(config, key) for key in _SIZES}, {key: getattr(read_back, key) for key in _SIZES})
        write_torch_file(path, {text_to_original(name): tensor for name, tensor in state.items()}, dtype)
    else:
        write_shards(path, state, "model", dtype)
        config = copy.deepcopy(config)
        config.dtype = dtype or encoder.model.dtype
        config.save_pretrained(path)


def _config_from_original(tensors: Mapping[str, Tensor]) -> UMT5Config:
    """umT5's sizes read from tensors. Where one is absent that of umT5-XXL is used, and the strict load reports it."""

    def size(name: str, axis: int, default: int) -> int:
        return tensors[name].shape[axis] if name in tensors else default

    layer = "encoder.block.0.layer"
    heads = size(f"{layer}.0.SelfAttention.relative_attention_bias.weight", 1, 64)
    return UMT5Config(
        vocab_size=size("shared.weight", 0, 256384),
        d_model=size("shared.weight", 1, 4096),
        d_kv=size(f"{layer}.0.SelfAttention.q.weight", 0, 4096) // heads,
        d_ff=size(f"{layer}.1.DenseReluDense.wi_0.weight", 0, 10240),
        num_layers=1
        + max((int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block.")), default=23),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=size(f"{layer}.0.SelfAttention.relative_attention_bias.weight", 0, 32),
    )
