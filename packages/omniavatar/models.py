"""The four networks of generation: paths of their weights, loading and placement, and an identity for caches."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from common.errors import InputError
from common.runs import fingerprint
from omniavatar.config import LoadConfig
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from omniavatar.encoders.text import TextEncoder, load_text_encoder
from omniavatar.encoders.vae import WanVAE, load_vae
from omniavatar.model.adapter import merge_lora
from omniavatar.model.attention import choose_attention
from omniavatar.model.transformer import AvatarTransformer, load_base
from omniavatar.parallel.block_offload import stream_blocks
from omniavatar.parallel.ranks import in_turn, join_ranks, own_device
from omniavatar.parallel.sequence import SequenceGroup
from omniavatar.parallel.sharding import shard_blocks
from omniavatar.weights.checkpoints import load_adapter
from omniavatar.weights.loras import merge_extra_lora


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


def load_models(paths: ModelPaths, config: LoadConfig = LoadConfig()) -> AvatarModels:
    """Load all networks for generation. Raises what the loaders, `resolve_device` and `choose_attention` raise."""
    if config.offload == "blocks" or config.shard:
        gc.collect()  # reference cycles of hooks keep a model loaded earlier, and its memory, alive
    device, dtype = resolve_device(config)
    ranks = parts = None
    if config.share_sequence or config.share_branches:
        device = own_device(device)
        ranks = join_ranks(device)
        # A group of its own: the next block is gathered while tokens of the current one are exchanged.
        parts = join_ranks(device) if config.shard else None
    with in_turn(parts) if parts else nullcontext():
        transformer = _load_transformer(paths, config, dtype)
        if ranks and config.share_sequence:
            transformer.share_sequence(ranks)
        chosen = _place(transformer, device, config, parts)
        text_encoder = load_text_encoder(paths.text_encoder, paths.tokenizer, dtype)
        umt5 = text_encoder.model
        if parts:
            shard_blocks(umt5, [umt5.shared, *umt5.encoder.block], parts, device, config.offload == "blocks")
        else:
            umt5.to(device)
    vae = load_vae(paths.vae, dtype).to(device)
    vae.set_tiling(config.tiled_vae, config.largest_tile)
    audio_encoder = load_audio_encoder(paths.audio_encoder)
    audio_encoder.model.to(device)
    files = asdict(paths) | ({"extra_lora": Path(config.extra_lora)} if config.extra_lora else {})
    settings = [config.round_timestep, chosen, config.tiled_vae, config.merge, config.extra_lora_scale]
    identity = fingerprint([*_file_marks(files), str(dtype), *settings])
    rank, branch_group = ranks.rank if ranks else 0, ranks if config.share_branches else None
    return AvatarModels(transformer, vae, text_encoder, audio_encoder, identity, rank, branch_group)


def _load_transformer(paths: ModelPaths, config: LoadConfig, dtype: torch.dtype) -> AvatarTransformer:
    """The transformer with its adapter and extra LoRA, on the host."""
    transformer = load_base(paths.transformer, dtype)
    transformer.round_timestep = config.round_timestep
    if paths.adapter is not None:
        load_adapter(transformer, paths.adapter)
        if config.merge:
            merge_lora(transformer)
    if config.extra_lora:
        merge_extra_lora(transformer, config.extra_lora, config.extra_lora_scale)
    return transformer.eval().requires_grad_(False)


def _place(
    transformer: AvatarTransformer, device: torch.device, config: LoadConfig, parts: SequenceGroup | None
) -> str:
    """Move the transformer to its device, shards or host, and return the name of its attention kernel."""
    if config.offload == "none" and parts is None:
        transformer.to(device)
        return choose_attention(transformer, config.attention)
    transformer.dit.blocks[0].to(device)  # kernels are tried with the weights of a block
    chosen = choose_attention(transformer, config.attention)
    if parts:
        shard_blocks(transformer, transformer.dit.blocks, parts, device, config.offload == "blocks")
    else:
        stream_blocks(transformer, device)
    return chosen


def _file_marks(roles: Mapping[str, Path | None]) -> Iterator[tuple[str, str, int, int]]:
    # Size and modification time, not content: hashing 40 GB would take longer than sampling a chunk.
    for role, path in roles.items():
        files = sorted(path.rglob("*")) if path and path.is_dir() else [path] if path else []
        for file in files:
            if file.is_file():
                yield role, file.name, file.stat().st_size, file.stat().st_mtime_ns
