"""Sizes of the four networks of generation: from the headers of their files, or as published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from common.runs import read_json
from common.untrusted.weight_files import CheckpointError, check_config
from omniavatar.config import AudioEntry, Variant
from omniavatar.planning.network import AudioSizes, Network, Networks, TextSizes, VAESizes, network_of
from omniavatar.weights.headers import Header, read_headers

# Folder of a base -> the config.json of its transformer; also the sizes that a plan takes before anything is fetched.
PUBLISHED = {
    "wan2.1-t2v-14b": {"dim": 5120, "num_heads": 40, "ffn_dim": 13_824, "num_layers": 40},
    "wan2.1-t2v-1.3b": {"dim": 1536, "num_heads": 12, "ffn_dim": 8_960, "num_layers": 30},
}
LARGEST = 10**9  # of any setting that is read
# The settings that are read of each role's `config.json`, with a value of the right type.
_COUNTS = ("dim", "num_heads", "ffn_dim", "num_layers", "text_dim", "freq_dim", "out_dim", "out_channels")
_BASE: Mapping[str, Any] = dict.fromkeys((*_COUNTS, "num_attention_heads", "attention_head_dim"), 1)
_ADAPTER: Mapping[str, Any] = {"train_architecture": "lora", "lora_rank": 128, "audio_entry": "multi"}
_VAE: Mapping[str, Any] = {"patch_size": 1}
_AUDIO: Mapping[str, Any] = {"conv_dim": [1], "hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}


def networks_of(roles: Mapping[str, Path | None]) -> Networks:
    """Sizes of the networks at the paths of these roles, read from configs and headers.

    What is not there yet, or is no weight file, has the published sizes: the transformer by the name of its folder, 14B
    where that says nothing. Raises DamagedFileError and CheckpointError for a config that cannot be used.
    """
    paths = {role: path for role, path in roles.items() if path is not None}
    audio = _audio(paths.get("audio_encoder"))
    return Networks(
        _transformer(paths.get("transformer"), paths.get("adapter"), audio.states),
        _text(paths.get("text_encoder")),
        _vae(paths.get("vae")),
        audio,
    )


def _config(folder: Path | None, like: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` in a folder, without settings that are null. Raises DamagedFileError, and CheckpointError for a
    value of a wrong type or beyond any model's."""
    file = folder / "config.json" if folder is not None else None
    if file is None or not file.is_file():
        return {}
    config = read_json(file)
    check_config(file, config, {}, defaults=like)
    if huge := [key for key in like if isinstance(config.get(key), int) and config[key] > LARGEST]:
        raise CheckpointError(
            file, [f"{huge[0]} is over {LARGEST}, which no model has; take the published config.json"]
        )
    return {key: value for key, value in config.items() if value is not None}


def _transformer(base: Path | None, adapter: Path | None, audio_dim: int) -> Network:
    name = base.name.lower() if base is not None else ""
    config = _config(base, _BASE) or PUBLISHED.get(name, PUBLISHED["wan2.1-t2v-14b"])
    if adapter is None:
        return network_of(config, "base", 0, "multi", 0)
    own = {**_ADAPTER, **_config(adapter, _ADAPTER)}
    variant, entry = own["train_architecture"], own["audio_entry"]
    if variant not in get_args(Variant) or entry not in get_args(AudioEntry):  # the loader says what it takes
        variant, entry = _ADAPTER["train_architecture"], _ADAPTER["audio_entry"]
    return network_of(config, variant, own["lora_rank"], entry, audio_dim)


def _text(path: Path | None) -> TextSizes:
    headers = read_headers(path) if path is not None else {}
    own = {name: header for name, header in headers.items() if name != "encoder.embed_tokens.weight"}
    table = own.get("shared.weight") or own.get("token_embedding.weight")
    up = _first(own, "wi_0.weight", "ffn.fc1.weight")
    bias = _first(own, "relative_attention_bias.weight", "pos_embedding.embedding.weight")
    if any(header is None or len(header.shape) != 2 for header in (table, up, bias)):
        return TextSizes()
    assert table and up and bias
    blocks = {match[1] for name in own if (match := re.search(r"blocks?\.(\d+)\.", name))}
    return TextSizes(
        weights=sum(header.size for header in own.values()),
        embedding=table.size,
        layers=len(blocks),
        width=table.shape[1],
        ffn=up.shape[0],
        heads=bias.shape[1],
        stored=2 if table.kind in ("BF16", "F16") else 4,
    )


def _vae(path: Path | None) -> VAESizes:
    headers = read_headers(path) if path is not None else {}
    first = headers.get("encoder.conv_in.weight") or headers.get("encoder.conv1.weight")
    if first is None or not first.shape:
        return VAESizes()
    patch = _config(path, _VAE).get("patch_size") or 1
    return VAESizes(sum(header.size for header in headers.values()), first.shape[0], patch)


def _audio(path: Path | None) -> AudioSizes:
    config = _config(path, _AUDIO)
    if not config:
        return AudioSizes()
    headers = read_headers(path) if path is not None else {}
    dropped = ("lm_head.", "project_hid.", "project_q.", "quantizer.", "wav2vec2.masked_spec_embed")
    own = sum(header.size for name, header in headers.items() if not name.startswith(dropped))
    return AudioSizes(
        weights=own or AudioSizes.weights,
        convolution=max(config.get("conv_dim") or [512]),
        width=config.get("hidden_size", 768),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
    )


def _first(headers: Mapping[str, Header], *ends: str) -> Header | None:
    return next((header for name, header in headers.items() if name.endswith(ends)), None)
