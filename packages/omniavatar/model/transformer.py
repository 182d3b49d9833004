"""The Wan2.1 video transformer with OmniAvatar's audio layers.

Shapes: B batch, T latent frames, h w latent height and width, n text tokens, D text width,
F = 4(T - 1) + 1 pixel frames, C audio width, S = T * (h/2) * (w/2) tokens, N blocks.
Input channels of the avatar model: 16 noisy latent, 16 reference latent, 1 mask (0 = given, 1 = to generate).
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from common.constants import FRAMES_PER_LATENT
from common.errors import InputError, MissingFileError
from common.runs import read_json
from common.untrusted.weight_files import Shapes, check_config, layers, side
from omniavatar.config import AudioEntry, Recompute, audio_blocks
from omniavatar.model.audio_entry import audio_modules
from omniavatar.model.audio_pack import AudioPack, AudioTokens
from omniavatar.model.cache import CachedAudio, CachedText, PackedText, ResidualCache, TextAttention, pack_text
from omniavatar.model.recompute import recomputing
from omniavatar.parallel.sequence import Rotary, SequenceGroup, SharedSelfAttention
from omniavatar.weights.key_names import dit_to_diffusers, dit_to_original
from omniavatar.weights.model_configs import build_described, build_empty, config_defaults
from omniavatar.weights.tensor_files import CheckpointError, fill_module, read_shapes, read_tensors, refuse_unsaid


class AudioConditionedWan(WanTransformer3DModel):
    """diffusers' Wan transformer with an audio layer before some of its blocks.

    The loop over blocks is explicit instead of made of hooks: packed audio and audio layer are arguments of a block, so
    recomputation under gradient checkpointing and parameter gathering under ZeRO-3 see the data flow of the forward
    pass.
    """

    ranks: SequenceGroup | None = None  # the ranks that share the tokens of each sample; None: no sharing
    packs_text = False  # whether the padding of the text is replaced, see `pack_text`

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor | CachedText,
        packed: Tensor | None = None,
        layers: Mapping[int, nn.Module] | None = None,
        residual: ResidualCache | None = None,
    ) -> Tensor:
        """(B, in, T, h, w), (B,), (B, n, D), packed audio (B, T, ...), {block: layer} -> (B, out, T, h, w).

        With `residual` the blocks are skipped where it has a value to reuse, else what they add is stored in it.
        """
        grid = [size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)]
        rotary = self.rope(latents)
        tokens = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()  # (B, S, dim)
        span = TokenSpan(grid[1] * grid[2])
        count = tokens.shape[1]
        if self.ranks is not None:  # from here on only this rank's part of the tokens, until `whole`
            tokens = self.ranks.part(tokens)
            cosine, sine = rotary
            rotary = Rotary(self.ranks.part(cosine), self.ranks.part(sine), count)
            span = TokenSpan(span.per_frame, self.ranks.rank * tokens.shape[1])
        time, modulation, embedded = self._embed(timestep, text)
        if residual is not None and residual.reuse and residual.value is not None:
            tokens = tokens + residual.value
        else:
            before = tokens
            tokens = self._run_blocks(tokens, layers or {}, embedded, modulation, rotary, packed, span)
            if residual is not None:
                residual.value = tokens - before
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        tokens = self.proj_out(tokens)
        return self._unpatchify(tokens if self.ranks is None else self.ranks.whole(tokens, count), grid)

    def _embed(
        self, timestep: Tensor, text: Tensor | CachedText
    ) -> tuple[Tensor, Tensor, Tensor | CachedText | PackedText]:
        """Time embedding (B, dim), the modulation (B, 6, dim) made from it, and the text as the blocks take it."""
        embedder = self.condition_embedder
        packed = pack_text(text) if self.packs_text and isinstance(text, Tensor) else None
        states = text if packed is None else packed.states
        if isinstance(text, CachedText):
            dtype = embedder.text_embedder.linear_1.weight.dtype
            text.embed(embedder.text_embedder, dtype, self.packs_text)
            # diffusers embeds time and text in one call: it gets no tokens, their embedding is in the cache.
            states = text.states[:, :0].to(dtype)
        time, projection, states, _ = embedder(timestep, states)
        taken = text if isinstance(text, CachedText) else states if packed is None else PackedText(states, packed.bias)
        return time, projection.unflatten(1, (6, -1)), taken

    def _run_blocks(self, tokens: Tensor, layers: Mapping[int, nn.Module], *shared: Any) -> Tensor:
        """Tokens (B, s, dim) after all blocks; `shared` are the arguments that all blocks get."""
        recompute = torch.is_grad_enabled() and self.gradient_checkpointing
        for index, block in enumerate(self.blocks):
            step = (block, tokens, layers.get(index), *shared)
            tokens = self._gradient_checkpointing_func(_run_block, *step) if recompute else _run_block(*step)
        return tokens

    def _unpatchify(self, tokens: Tensor, grid: list[int]) -> Tensor:
        cells = tokens.unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)  # (B, t, h, w, pt, ph, pw, c)
        return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class TimestepSinusoid(nn.Module):
    """Sinusoidal embedding of a timestep, cosines first, computed in float64 as Wan2.1 does.

    In float32, as in diffusers, the angle of a timestep near 1000 alone moves the output by up to 2.4e-5.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) in 0..1000 -> (B, width) float32."""
        half = self.width // 2
        powers = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = timestep.double()[:, None] * 10000**-powers
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()


class TokenSpan(NamedTuple):
    """Position of a rank's tokens in their sample: tokens per latent frame, and index of the rank's first token."""

    per_frame: int
    first: int = 0


def _run_block(
    block: nn.Module,
    tokens: Tensor,
    layer: nn.Module | None,
    text: Tensor | CachedText | PackedText,
    modulation: Tensor,
    rotary: tuple[Tensor, Tensor],
    packed: Tensor | None,
    span: TokenSpan,
) -> Tensor:
    """One block on tokens (B, s, dim), preceded by its audio layer if it has one."""
    if layer is not None and packed is not None:
        tokens = _inject_audio(layer, tokens, packed, span)
    return block(tokens, text, modulation, rotary)


def _inject_audio(layer: nn.Module, tokens: Tensor, packed: Tensor, span: TokenSpan) -> Tensor:
    """Tokens (B, s, dim) plus the output of the audio layer, which works frame by frame.

    A rank's part may start and end within a latent frame, so it is padded to whole frames and cut again.
    """
    before = span.first % span.per_frame
    after = -(before + tokens.shape[1]) % span.per_frame
    whole = functional.pad(tokens, (0, 0, before, after)) if before or after else tokens
    by_frame = whole.unflatten(1, (-1, span.per_frame))
    first = span.first // span.per_frame
    packed = packed[:, first : first + by_frame.shape[1]]
    if packed.shape[1] < by_frame.shape[1]:  # tokens after the last frame are padding of a rank's part
        silent = packed.new_zeros(packed.shape[0], by_frame.shape[1] - packed.shape[1], *packed.shape[2:])
        packed = torch.cat([packed, silent], dim=1)
    conditioned = (by_frame + layer(by_frame, packed).to(tokens.dtype)).flatten(1, 2)
    return conditioned[:, before : before + tokens.shape[1]]


class AvatarTransformer(nn.Module):
    """Wan2.1 transformer, plain (text to video) or with the 33-channel input and the audio layers of OmniAvatar.

    `round_timestep` (off) rounds the timestep to bfloat16 before its embedding, as upstream does in training and
    sampling: set it for the released weights.
    """

    def __init__(self, dit: AudioConditionedWan):
        super().__init__()
        self.dit = dit
        self.audio_entry: AudioEntry = "multi"
        self.audio_proj: AudioPack | AudioTokens | None = None
        self.audio_cond_projs: nn.ModuleList | None = None
        self.round_timestep = False
        dit.condition_embedder.timesteps_proj = TimestepSinusoid(dit.config.freq_dim)
        for block in dit.blocks:
            block.attn2.set_processor(TextAttention())

    @property
    def has_audio(self) -> bool:
        """True for the avatar model, False for the plain text-to-video base."""
        return self.audio_proj is not None

    @property
    def audio_dim(self) -> int:
        """Width C of the audio states this model was made for, 0 for the plain base."""
        return self.audio_proj.in_dim if self.audio_proj is not None else 0

    def set_gradient_checkpointing(self, mode: Recompute) -> None:
        """Store every activation of a block ("none"), its input alone ("full"), or also the attention output."""
        if mode == "none":
            self.dit.disable_gradient_checkpointing()
        else:
            self.dit.enable_gradient_checkpointing(recomputing(mode))

    def share_sequence(self, ranks: SequenceGroup) -> None:
        """Share the tokens of every sample among `ranks` from now on: all pass the same inputs and get the same output.

        The gradient of a rank covers its own tokens, times the number of ranks: the mean over ranks is the gradient.
        Raises ValueError unless the number of ranks divides the number of heads.
        """
        heads = self.dit.config.num_attention_heads
        if heads % ranks.size:
            fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise InputError(f"{ranks.size} ranks cannot share {heads} attention heads; expected one of {fitting}.")
        self.dit.ranks = ranks
        for block in self.dit.blocks:
            block.attn1.set_processor(SharedSelfAttention(ranks))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor | CachedText,
        condition: Tensor | None = None,
        audio: Tensor | CachedAudio | None = None,
        residual: ResidualCache | None = None,
    ) -> Tensor:
        """Velocity (B, 16, T, h, w), noise minus data, for noisy latents (B, 16, T, h, w) at timestep (B,) in 0..1000.

        text (B, n, D) zero-padded; condition (B, 17, T, h, w) from `build_condition`, required by the avatar model and
        refused by the plain one; audio (B, F, C), None skips the audio layers (zeros do not: packing has a bias).
        CachedText, CachedAudio and `residual` keep values between calls; they are for sampling and have no gradient.
        Source: paper section 3.2 and 3.3. Raises ValueError when inputs do not belong to this kind of model.
        """
        states = audio.states if isinstance(audio, CachedAudio) else audio
        if self.has_audio != (condition is not None) or (audio is not None and not self.has_audio):
            kind = (
                "the avatar model needs a condition" if self.has_audio else "the plain base takes no condition or audio"
            )
            raise ValueError(f"condition={_shape(condition)}, audio={_shape(states)}, but {kind}.")
        pixel_frames = FRAMES_PER_LATENT * (latents.shape[2] - 1) + 1
        if states is not None and states.shape[1] != pixel_frames:
            raise ValueError(f"{states.shape[1]} audio frames; {latents.shape[2]} latent frames need {pixel_frames}.")
        if condition is not None:
            latents = torch.cat([latents, condition.to(latents.dtype)], dim=1)
        packed, layers = self._pack_audio(audio) if audio is not None else (None, None)
        embedder = self.dit.condition_embedder.text_embedder.linear_1
        return self.dit(
            latents.to(self.dit.patch_embedding.weight.dtype),
            self._cast_timestep(timestep).expand(latents.shape[0]),
            text if isinstance(text, CachedText) else text.to(embedder.weight.dtype),
            packed,
            layers,
            residual,
        )

    def modulation(self, timestep: Tensor) -> Tensor:
        """Shifts, scales and gates (B, 6, dim) of every block for a timestep (B,) in 0..1000."""
        no_text = CachedText(timestep.new_zeros(len(timestep), 0, self.dit.config.text_dim))
        return self.dit._embed(self._cast_timestep(timestep), no_text)[1]

    def _cast_timestep(self, timestep: Tensor) -> Tensor:
        return (timestep.to(torch.bfloat16) if self.round_timestep else timestep).float()

    def _pack_audio(self, audio: Tensor | CachedAudio) -> tuple[Tensor, dict[int, nn.Module]]:
        assert self.audio_proj is not None and self.audio_cond_projs is not None
        blocks = audio_blocks(self.dit.config.num_layers, self.audio_entry)
        packed = audio.packed(self.audio_proj) if isinstance(audio, CachedAudio) else self.audio_proj(audio)
        return packed, dict(zip(blocks, self.audio_cond_projs, strict=True))


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def build_condition(reference: Tensor, latent_frames: int, prefix_latents: int | Tensor) -> Tensor:
    """(B, 16, 1, h, w) reference latent -> (B, 17, T, h, w): the reference in every frame and the mask.

    `prefix_latents`: number of leading latent frames that are given clean, one int or one per sample (B,); there the
    mask is 0, elsewhere 1. Source: paper section 3.3; the mask channel is in the released code only.
    """
    batch, _, _, height, width = reference.shape
    prefix = torch.as_tensor(prefix_latents, device=reference.device).expand(batch)
    frames = torch.arange(latent_frames, device=reference.device)
    mask = (frames[None] >= prefix[:, None]).to(reference.dtype)[:, None, :, None, None]
    repeated = reference.expand(-1, -1, latent_frames, -1, -1)
    return torch.cat([repeated, mask.expand(-1, -1, -1, height, width)], dim=1)


def new_base(config: dict[str, Any]) -> AvatarTransformer:
    """A plain text-to-video model with random weights from a diffusers WanTransformer3DModel config."""
    return AvatarTransformer(AudioConditionedWan.from_config(config))


def load_base(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mapped: bool = False,
    exact: Collection[str] = (),
) -> AvatarTransformer:
    """Load a plain Wan text-to-video transformer from a folder in diffusers or in original Wan layout.

    Shards are streamed: peak memory is the model and one shard. On device "meta" only headers are read and checked, and
    the model has no values. Parameters that diffusers keeps in float32 (norms, modulation tables, time embedding), and
    those of modules named in `exact`, are float32 for every `dtype`. With `mapped` weights stay maps of their files, of
    the type they have there, for `settle_weights` with `stored_type_of`. Raises FileNotFoundError, CheckpointError.
    """
    config = base_config(folder)
    file, shapes = Path(folder) / "config.json", read_shapes(folder)
    named = {dit_to_diffusers(name): shape for name, shape in shapes.items()} if _is_original(folder) else shapes
    _check_sizes(file, config, named)
    dit = build_described(file, lambda: AudioConditionedWan.from_config(config))
    kind = stored_type_of(dit, dtype, exact)
    fill_module(dit, base_tensors(folder, device), folder, kind, name_in_file=name_in_base(folder), mapped=mapped)
    return AvatarTransformer(dit).to(device)


def name_in_base(folder: Path | str) -> Callable[[str], str]:
    """From a parameter's name, of the transformer alone or in an avatar model, to its name in the files of a base."""
    rename = dit_to_original if _is_original(folder) else str
    return lambda name: rename(name.removeprefix("dit.").replace(".base_layer.", "."))


def stored_type_of(
    dit: AudioConditionedWan, dtype: torch.dtype, exact: Collection[str] = ()
) -> Callable[[str], torch.dtype]:
    """The type of each parameter, by its name, of a transformer that computes in `dtype`; `exact` as in `load_base`."""
    return partial(_stored_type, dtype, {*(dit._keep_in_fp32_modules or ()), *exact})


def base_config(folder: Path | str) -> dict[str, Any]:
    """The arguments of diffusers' class for the base in a folder of either layout, of the right types.

    Raises as `load_base` does.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        raise MissingFileError(f"{folder} has no config.json; expected a Wan transformer folder with its weights.")
    config = read_json(file)
    check_config(file, config, {})
    if "dim" in config:
        config = _config_from_original(config, file)
    check_config(file, config, {}, defaults=config_defaults(WanTransformer3DModel))
    return config


def _check_sizes(file: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare the arguments of diffusers' class with the shapes of its weights. Raises CheckpointError."""
    whole = config_defaults(WanTransformer3DModel) | {k: v for k, v in config.items() if v is not None}
    patch = shapes.get("patch_embedding.weight", ())[2:]
    width = "num_attention_heads * attention_head_dim"
    out = side(shapes, "proj_out.weight", 0)
    sizes = {
        "num_layers": layers(shapes, "blocks."),
        "ffn_dim": side(shapes, "blocks.0.ffn.net.0.proj.weight", 0),
        "in_channels": side(shapes, "patch_embedding.weight", 1),
        "patch_size": list(patch) or None,
        "out_channels": out and patch and out // math.prod(patch),
        "text_dim": side(shapes, "condition_embedder.text_embedder.linear_1.weight", 1),
        "freq_dim": side(shapes, "condition_embedder.time_embedder.linear_1.weight", 1),
        width: side(shapes, "patch_embedding.weight", 0),
    }
    whole[width] = whole["num_attention_heads"] * whole["attention_head_dim"]
    check_config(file, whole, shapes, {key: value or None for key, value in sizes.items()})


def base_tensors(folder: Path | str, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) in the files of a base, under diffusers' names; on device "meta" without values.

    In the order of the files. Raises FileNotFoundError, CheckpointError.
    """
    original = _is_original(folder)
    for name, tensor in read_tensors(folder, device):
        yield (dit_to_diffusers(name) if original else name), tensor


def _is_original(folder: Path | str) -> bool:
    return "dim" in read_json(Path(folder) / "config.json")


def _stored_type(dtype: torch.dtype, kept: set[str], name: str) -> torch.dtype:
    return torch.float32 if kept & set(name.split(".")) else dtype


def _config_from_original(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """The `config.json` beside an original Wan file -> the arguments of diffusers' class. Raises CheckpointError."""
    missing = [key for key in ("dim", "num_heads", "ffn_dim", "num_layers") if key not in config]
    if missing:
        raise CheckpointError(source, [f"missing: {key}, a size of the model" for key in missing])
    check_config(source, config, {}, defaults={"dim": 1, "num_heads": 1})
    if not config["num_heads"]:
        raise CheckpointError(source, ["num_heads is 0; expected 1 or more"])
    return {
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config.get("in_dim", 16),
        "out_channels": config.get("out_dim", 16),
        "text_dim": config.get("text_dim", 4096),
        "freq_dim": config.get("freq_dim", 256),
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "eps": config.get("eps", 1e-6),
    }


def config_to_original(dit: AudioConditionedWan) -> dict[str, Any]:
    """The `config.json` beside an original Wan file. Raises ValueError for settings that format does not have."""
    config = dit.config
    original = {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.num_attention_heads * config.attention_head_dim,
        "num_heads": config.num_attention_heads,
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "text_dim": config.text_dim,
        "text_len": 512,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "eps": config.eps,
    }
    again = build_empty(lambda: AudioConditionedWan.from_config(_config_from_original(original, Path())))
    # The length of the rotary table limits positions and does not change their meaning.
    refuse_unsaid(config, again.config, but={"rope_max_seq_len"})
    return original


def to_avatar(
    base: AvatarTransformer, audio_dim: int, hidden: int | None = None, entry: AudioEntry = "multi"
) -> AvatarTransformer:
    """Turn a plain model, in place, into the avatar model: 33 input channels and the audio modules.

    `hidden`: width of the packed audio, None for the default of the audio entry (32 where it is packed, as published).
    The new patch channels and the output of the audio layers are zero, so the first output equals the base's exactly,
    while both get gradients from the first step. (Upstream zeroes the LayerNorm of the pack instead and initialises the
    new channels at random.)
    Raises ValueError for an unknown entry.
    """
    dit, patch = base.dit, base.dit.patch_embedding
    width = dit.config.num_attention_heads * dit.config.attention_head_dim
    with torch.device(patch.weight.device):
        pack, layers = audio_modules(entry, dit.config.num_layers, width, audio_dim, hidden)
    base.audio_entry = entry
    base.audio_proj, base.audio_cond_projs = pack.to(patch.weight.dtype), layers.to(patch.weight.dtype)
    _widen_input(dit, 2 * dit.config.in_channels + 1)
    return base


def _widen_input(dit: AudioConditionedWan, channels: int) -> None:
    patch = dit.patch_embedding
    like: dict[str, Any] = {"device": patch.weight.device, "dtype": patch.weight.dtype}
    wider = nn.Conv3d(channels, patch.out_channels, patch.kernel_size, patch.stride, **like)
    with torch.no_grad():
        wider.weight.zero_()[:, : dit.config.in_channels] = patch.weight
    wider.bias = patch.bias
    dit.patch_embedding = wider
    dit.register_to_config(in_channels=channels)
