"""The four networks of generation: paths of their weights, loading and placement, and an identity for caches."""

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

from common.errors import InputError
from common.runs import fingerprint
from omniavatar.config import LoadConfig
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from omniavatar.encoders.text import TextEncoder, load_text_encoder, stream_text_encoder
from omniavatar.encoders.vae import WanVAE, load_vae
from omniavatar.model.adapter import merge_lora
from omniavatar.model.attention import choose_attention
from omniavatar.model.int8 import quantize_linears
from omniavatar.model.transformer import AvatarTransformer, load_base, name_in_base, stored_type_of
from omniavatar.parallel.block_offload import stream_blocks
from omniavatar.parallel.ranks import in_turn, join_ranks, own_device
from omniavatar.parallel.sequence import SequenceGroup
from omniavatar.parallel.sharding import shard_blocks
from omniavatar.planning.memory import Job
from omniavatar.planning.modes import choose_mode, free_host_memory, with_mode
from omniavatar.planning.sizes import networks_of
from omniavatar.planning.tiles import LARGEST_TILE
from omniavatar.weights.checkpoints import load_adapter
from omniavatar.weights.loras import merge_extra_lora
from omniavatar.weights.tensor_files import settle_weights, weights_file

logger = logging.getLogger(__name__)


def resolve_device(config: LoadConfig) -> tuple[torch.device, torch.dtype]:
    """Device and precision of `config` on this machine. Raises ValueError for a device that does not exist."""
    gpus = torch.cuda.device_count()
    device = torch.device(("cuda" if gpus else "cpu") if config.device == "auto" else config.device)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise InputError(f"load.device is {config.device}, but torch sees {gpus} GPUs; set it to auto or to another.")
    kind = ("bf16" if device.type == "cuda" else "fp32") if config.dtype == "auto" else config.dtype
    return device, {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]


@dataclass(frozen=True)
class ModelPaths:
    """Paths of the weights of each role; without an adapter the transformer is the plain text-to-video base."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    audio_encoder: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class AvatarModels:
    """The four networks on one device, and an identity of their weights that names cached chunks.

    `rank` of this process among those that generate one video together: only 0 writes. `branch_group`: the processes
    that share the branches of guidance.
    """

    transformer: AvatarTransformer
    vae: WanVAE
    text_encoder: TextEncoder
    audio_encoder: AudioEncoder
    identity: str = ""
    rank: int = 0
    branch_group: SequenceGroup | None = None

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        return self.vae.mean.device

    @property
    def size_unit(self) -> int:
        """Pixels that height and width must be multiples of."""
        return int(self.vae.stride[1] * self.transformer.dit.config.patch_size[1])


def load_models(paths: ModelPaths, config: LoadConfig = LoadConfig(), job: Job | None = None) -> AvatarModels:
    """Load all networks for generation, in the memory mode of `config`; "auto" has to fit `job`, or a chunk at 480p.

    Raises what the loaders, `resolve_device` and `choose_attention` raise.
    """
    if config.offload == "blocks" or config.shard:
        gc.collect()  # reference cycles of hooks keep a model loaded earlier, and its memory, alive
    device, dtype = resolve_device(config)
    config = _settled(paths, config, job or Job(), device, dtype)
    ranks = parts = None
    if config.share_sequence or config.share_branches:
        device = own_device(device)
        ranks = join_ranks(device)
        # A group of its own: the next block is gathered while tokens of the current one are exchanged.
        parts = join_ranks(device) if config.shard else None
    with in_turn(parts) if parts else nullcontext():
        transformer, chosen = _load_transformer(paths, config, device, dtype, ranks, parts)
        text_encoder = _load_text_encoder(paths, config, device, dtype, parts)
    vae = load_vae(paths.vae, dtype).to(device)
    vae.set_tiling(config.tiled_vae, config.largest_tile)
    audio_encoder = load_audio_encoder(paths.audio_encoder)
    audio_encoder.model.to(device)
    rank, branch_group = ranks.rank if ranks else 0, ranks if config.share_branches else None
    identity = _identity(paths, config, dtype, chosen)
    return AvatarModels(transformer, vae, text_encoder, audio_encoder, identity, rank, branch_group)


def _settled(paths: ModelPaths, config: LoadConfig, job: Job, device: torch.device, dtype: torch.dtype) -> LoadConfig:
    """The settings with those of the memory mode; "auto" goes by what is free now on the device and on the host."""
    if config.memory != "auto":
        return with_mode(config, config.memory)
    if config.share_sequence or config.share_branches:
        return config  # each process holds a part; what is set says how
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    host, half = free_host_memory(), dtype == torch.bfloat16
    fit = choose_mode(networks_of(asdict(paths)), config, job, free, host, half)
    found = f"{free / 1e9:.1f} GB of the GPU and {host / 1e9:.1f} GB of the host" if free else f"{host / 1e9:.1f} GB"
    if fit.fits:
        logger.info("memory mode %s: needs %s; %s are free", fit.mode, fit.needs(), found)
    else:
        logger.warning(
            "No memory mode with exact weights is expected to fit. %s, the smallest, needs %s, and %s are free; "
            "load.memory=int8 or int8_offloaded needs less, so do a smaller max_tokens, height and width.",
            fit.mode, fit.needs(), found,
        )  # fmt: skip
    return fit.load


def _load_transformer(
    paths: ModelPaths,
    config: LoadConfig,
    device: torch.device,
    dtype: torch.dtype,
    ranks: SequenceGroup | None,
    parts: SequenceGroup | None,
) -> tuple[AvatarTransformer, str]:
    """The transformer with its adapter and extra LoRA on its device, sharded or on the host, and the name of its
    attention kernel.

    Weights stay maps of their files until their block is converted, merged with the LoRA and moved, so that the host
    holds one block at a time. (An extra LoRA, and shards, need all of them at once.)
    """
    mapped = not (config.extra_lora or parts)
    transformer = load_base(paths.transformer, dtype, mapped=mapped)
    transformer.round_timestep = config.round_timestep
    if paths.adapter is not None:
        load_adapter(transformer, paths.adapter)
    if config.extra_lora:
        if config.merge:
            merge_lora(transformer)
        merge_extra_lora(transformer, config.extra_lora, config.extra_lora_scale)
    transformer.eval().requires_grad_(False)
    if ranks and config.share_sequence:
        transformer.share_sequence(ranks)
    on_device, kind = config.offload == "none" and parts is None, stored_type_of(transformer.dit, dtype)
    for name, part in _parts(transformer):
        if mapped:
            settle_weights(part, kind, weights_file(paths.transformer), name, name_in_base(paths.transformer))
        if config.merge:
            merge_lora(part)
        if config.quantize == "int8" and isinstance(part, WanTransformerBlock):
            quantize_linears(part)
        if on_device:
            part.to(device)
    return transformer, _place(transformer, device, config, parts)


def _parts(transformer: AvatarTransformer) -> Iterator[tuple[str, nn.Module]]:
    """(Prefix of its parameters, module) of each block, and then of all the rest as one module."""
    blocks = transformer.dit.blocks
    for number, block in enumerate(blocks):
        yield f"blocks.{number}.", block
    transformer.dit.blocks = nn.ModuleList()
    yield "", transformer
    transformer.dit.blocks = blocks


def _place(
    transformer: AvatarTransformer, device: torch.device, config: LoadConfig, parts: SequenceGroup | None
) -> str:
    """Leave the transformer on its device, or shard it or keep it on the host; the name of its attention kernel."""
    if config.offload == "none" and parts is None:
        return choose_attention(transformer, config.attention)
    blocks = transformer.dit.blocks
    blocks[0].to(device)  # kernels are tried with the weights of a block
    chosen = choose_attention(transformer, config.attention)
    if parts:
        shard_blocks(transformer, blocks, parts, device, config.offload == "blocks")
    else:
        stream_blocks(transformer, blocks, device)
    return chosen


def _load_text_encoder(
    paths: ModelPaths, config: LoadConfig, device: torch.device, dtype: torch.dtype, parts: SequenceGroup | None
) -> TextEncoder:
    streamed = config.text_encoder == "streamed" and parts is None
    mapped = streamed or (device.type == "cuda" and parts is None)  # no whole copy on the host on the way to the GPU
    encoder = load_text_encoder(paths.text_encoder, paths.tokenizer, dtype, mapped=mapped)
    umt5 = encoder.model
    if parts:
        shard_blocks(umt5, [umt5.shared, *umt5.encoder.block], parts, device, config.offload == "blocks")
    elif streamed:
        stream_text_encoder(encoder, device, dtype)
    else:
        umt5.to(device, dtype)
    return encoder


def _identity(paths: ModelPaths, config: LoadConfig, dtype: torch.dtype, attention: str) -> str:
    """A fingerprint of the weights and of the settings that change pixels."""
    files = asdict(paths) | ({"extra_lora": Path(config.extra_lora)} if config.extra_lora else {})
    settings = [config.round_timestep, attention, config.tiled_vae, config.merge, config.extra_lora_scale]
    if config.tiled_vae and config.largest_tile != LARGEST_TILE:
        settings.append(config.largest_tile)
    if config.quantize != "none":
        settings.append(config.quantize)
    return fingerprint([*_file_marks(files), str(dtype), *settings])


def _file_marks(roles: Mapping[str, Path | None]) -> Iterator[tuple[str, str, int, int]]:
    # Size and modification time, not content: hashing 40 GB would take longer than sampling a chunk.
    for role, path in roles.items():
        files = sorted(path.rglob("*")) if path and path.is_dir() else [path] if path else []
        for file in files:
            if file.is_file():
                yield role, file.name, file.stat().st_size, file.stat().st_mtime_ns
