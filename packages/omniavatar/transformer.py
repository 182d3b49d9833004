"""The Wan2.1 video transformer with the audio entry points of OmniAvatar.

Shapes: B batch, T latent frames, h w latent height and width, n text tokens, D text width,
F = 4(T - 1) + 1 pixel frames, C audio width, S = T * (h/2) * (w/2) tokens, N blocks.
Input channels of the avatar model: 16 noisy latent, 16 reference latent, 1 mask (0 = given, 1 = to generate).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from omniavatar.audio_pack import AudioPack
from omniavatar.key_names import dit_to_diffusers
from omniavatar.tensor_files import build_empty, fill_module, read_tensors

FIRST_AUDIO_BLOCK = 2


def audio_blocks(num_layers: int) -> range:
    """The 0-based blocks that hear: "from the second to the middle layer" (paper 3.2) is 2 .. N/2 inclusive."""
    return range(FIRST_AUDIO_BLOCK, num_layers // 2 + 1)


class AudibleWanTransformer(WanTransformer3DModel):
    """diffusers' Wan transformer whose block loop takes a vector per latent frame for some blocks.

    The loop is explicit, not made of hooks: what a block hears is an argument, so recomputation under gradient
    checkpointing and parameter gathering under ZeRO-3 see the same data flow as the forward pass.
    """

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, heard: dict[int, Tensor] | None = None
    ) -> Tensor:
        """(B, in, T, h, w), (B,), (B, n, D), {block: (B, T, dim)} -> (B, out, T, h, w)."""
        grid = [size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)]
        rotary = self.rope(latents)
        tokens = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()  # (B, S, dim)
        time, time_projection, text, _ = self.condition_embedder(timestep, text)
        modulation = time_projection.unflatten(1, (6, -1))
        recompute = torch.is_grad_enabled() and self.gradient_checkpointing
        for index, block in enumerate(self.blocks):
            if heard and index in heard:
                # Every token of a latent frame hears the same vector.
                vectors = heard[index].to(tokens.dtype)[:, :, None]
                tokens = (tokens.unflatten(1, (grid[0], -1)) + vectors).flatten(1, 2)
            if recompute:
                tokens = self._gradient_checkpointing_func(block, tokens, text, modulation, rotary)
            else:
                tokens = block(tokens, text, modulation, rotary)
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        return self._unpatchify(self.proj_out(tokens), grid)

    def _unpatchify(self, tokens: Tensor, grid: list[int]) -> Tensor:
        cells = tokens.unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)  # (B, t, h, w, pt, ph, pw, c)
        return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class AvatarTransformer(nn.Module):
    """Wan2.1 transformer, plain (text to video) or with the 33-channel input and the audio layers of OmniAvatar.

    `round_timestep` (off) rounds the timestep to bfloat16 before its embedding: upstream does, in training and
    sampling, so its released weights come out closest with it.
    """

    def __init__(self, dit: AudibleWanTransformer):
        super().__init__()
        self.dit = dit
        self.audio_proj: AudioPack | None = None
        self.audio_cond_projs: nn.ModuleList | None = None
        self.round_timestep = False

    @property
    def hears(self) -> bool:
        """True for the avatar model, False for the plain text-to-video base."""
        return self.audio_proj is not None

    @property
    def audio_dim(self) -> int:
        """Width C of the audio states this model was made for, 0 for the plain base."""
        return self.audio_proj.in_dim if self.audio_proj is not None else 0

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass (use_reentrant=False) instead of keeping its activations."""
        if enabled:
            self.dit.enable_gradient_checkpointing()
        else:
            self.dit.disable_gradient_checkpointing()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        condition: Tensor | None = None,
        audio: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, 16, T, h, w), noise minus data, for noisy latents (B, 16, T, h, w) at timestep (B,) in 0..1000.

        text (B, n, D) zero-padded; condition (B, 17, T, h, w) from `build_condition`, required by the avatar model and
        refused by the plain one; audio (B, F, C), None skips the audio layers (zeros do not: they have a bias).
        Source: paper section 3.2 and 3.3. Raises ValueError when inputs do not belong to this kind of model.
        """
        if self.hears != (condition is not None) or (audio is not None and not self.hears):
            kind = "the avatar model needs a condition" if self.hears else "the plain base takes no condition or audio"
            raise ValueError(f"condition={_shape(condition)}, audio={_shape(audio)}, but {kind}.")
        if condition is not None:
            latents = torch.cat([latents, condition.to(latents.dtype)], dim=1)
        if self.round_timestep:
            timestep = timestep.to(torch.bfloat16)
        heard = self._listen(audio) if audio is not None else None
        embedder = self.dit.condition_embedder.text_embedder.linear_1
        return self.dit(
            latents.to(self.dit.patch_embedding.weight.dtype),
            timestep.float().expand(latents.shape[0]),
            text.to(embedder.weight.dtype),
            heard,
        )

    def _listen(self, audio: Tensor) -> dict[int, Tensor]:
        assert self.audio_proj is not None and self.audio_cond_projs is not None
        packed = self.audio_proj(audio)
        blocks = audio_blocks(self.dit.config.num_layers)
        return {block: project(packed) for block, project in zip(blocks, self.audio_cond_projs, strict=True)}


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def build_condition(reference: Tensor, latent_frames: int, given: int | Tensor) -> Tensor:
    """(B, 16, 1, h, w) reference latent -> (B, 17, T, h, w): the reference in every frame and the mask.

    `given`: number of leading latent frames that are handed in clean, one int or one per sample (B,); there the mask
    is 0, elsewhere 1. Source: paper section 3.3; the mask channel is in the released code only.
    """
    batch, _, _, height, width = reference.shape
    given = torch.as_tensor(given, device=reference.device).expand(batch)
    frames = torch.arange(latent_frames, device=reference.device)
    mask = (frames[None] >= given[:, None]).to(reference.dtype)[:, None, :, None, None]
    repeated = reference.expand(-1, -1, latent_frames, -1, -1)
    return torch.cat([repeated, mask.expand(-1, -1, -1, height, width)], dim=1)


def new_base(config: dict[str, Any]) -> AvatarTransformer:
    """A plain text-to-video model with random weights from a diffusers WanTransformer3DModel config."""
    return AvatarTransformer(AudibleWanTransformer.from_config(config))


def load_base(folder: Path | str, dtype: torch.dtype = torch.float32) -> AvatarTransformer:
    """Load a plain Wan text-to-video transformer from a folder in diffusers or in original Wan layout.

    Shards are streamed: peak memory is the model and one tensor. Parameters that diffusers keeps in float32 (norms,
    modulation tables, time embedding) stay so for every `dtype`. Raises FileNotFoundError, CheckpointError.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.exists():
        raise FileNotFoundError(f"{folder} has no config.json; expected a Wan transformer folder with its weights.")
    config = json.loads(config_file.read_text())
    original = "dim" in config
    dit = build_empty(lambda: AudibleWanTransformer.from_config(_config_from_original(config) if original else config))
    keep = set(dit._keep_in_fp32_modules or ())
    tensors = ((dit_to_diffusers(name) if original else name, tensor) for name, tensor in read_tensors(folder))
    fill_module(dit, tensors, folder, lambda name: torch.float32 if keep & set(name.split(".")) else dtype)
    return AvatarTransformer(dit)


def _config_from_original(config: dict[str, Any]) -> dict[str, Any]:
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


def to_avatar(base: AvatarTransformer, audio_dim: int, hidden: int = 32) -> AvatarTransformer:
    """Turn a plain model, in place, into the avatar model: 33 input channels, AudioPack, projections for the blocks.

    The new patch channels and the projections are zero, so the first output equals the base's exactly; gradients
    reach both at once. (Upstream zeroes the LayerNorm of the pack instead and draws the new channels at random.)
    """
    dit, patch = base.dit, base.dit.patch_embedding
    channels = 2 * dit.config.in_channels + 1
    wider = nn.Conv3d(
        channels,
        patch.out_channels,
        patch.kernel_size,
        patch.stride,
        device=patch.weight.device,
        dtype=patch.weight.dtype,
    )
    with torch.no_grad():
        wider.weight.zero_()[:, : dit.config.in_channels] = patch.weight
    wider.bias = patch.bias
    dit.patch_embedding = wider
    dit.register_to_config(in_channels=channels)
    width = dit.config.num_attention_heads * dit.config.attention_head_dim
    with torch.device(patch.weight.device):
        base.audio_proj = AudioPack(audio_dim, hidden).to(patch.weight.dtype)
        projections: Sequence[nn.Linear] = [nn.Linear(hidden, width) for _ in audio_blocks(dit.config.num_layers)]
        base.audio_cond_projs = nn.ModuleList(projections).to(patch.weight.dtype)
    for parameter in base.audio_cond_projs.parameters():
        nn.init.zeros_(parameter)
    return base
