"""The frozen Wan video autoencoder: encode and decode, on normalised latents.

Shapes: B batch, F = 4(T - 1) + 1 pixel frames, T latent frames, H = 8 h, W = 8 w.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from common.errors import InputError, MissingFileError
from common.runs import read_json, write_json
from omniavatar.planning.tiles import LARGEST_TILE, plan_tiles
from omniavatar.weights.key_names import vae_to_diffusers, vae_to_original
from omniavatar.weights.tensor_files import (
    NamedTensors,
    build_empty,
    fill_module,
    read_tensors,
    refuse_unsaid,
    write_shards,
    write_torch_file,
)


class WanVAE(nn.Module):
    """AutoencoderKLWan of any topology (Wan2.1, or with pixel patches as in Wan2.2), used without sampling noise.

    Causal in time: the first k latents depend only on the first 4k - 3 frames, and these frames only on those latents.
    """

    mean: Tensor  # (1, 16, 1, 1, 1)
    std: Tensor

    def __init__(self, model: AutoencoderKLWan):
        super().__init__()
        self.model = model
        self.register_buffer("mean", _per_channel(model.config.latents_mean), persistent=False)
        self.register_buffer("std", _per_channel(model.config.latents_std), persistent=False)
        self.largest_tile: int | None = None

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent in time, height and width: (4, 8, 8) for every published Wan2.1 file."""
        config = self.model.config
        space = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        return 2 ** sum(config.temperal_downsample), space, space

    def set_tiling(self, enabled: bool, largest_tile: int = LARGEST_TILE) -> None:
        """Use overlapping tiles of at most `largest_tile` latents: less memory, slightly different latents and pixels.

        Videos that fit one tile are not changed. Off for the extraction of latents, so that training sees exact ones.
        """
        self.largest_tile = largest_tile if enabled else None

    def _tile(self, height: int, width: int, unit: int) -> None:
        """Set the tiles for one call on `height` x `width` latents; `unit` is the number of the model's rows a
        latent."""
        tiles = plan_tiles(height, width, self.largest_tile) if self.largest_tile else None
        if tiles is None:
            self.model.disable_tiling()
        else:
            self.model.enable_tiling(tiles.height * unit, tiles.width * unit, tiles.down * unit, tiles.across * unit)

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, 16, T, h, w): the posterior's mean, (mu - mean) / std per channel.

        Raises ValueError unless F = 4n + 1 and H, W are multiples of the stride (a remainder would be lost).
        """
        time, height, width = self.stride
        frames, rows, columns = video.shape[2:]
        if frames % time != 1 % time or rows % height or columns % width:
            raise InputError(
                f"A video of {frames} frames, {rows}x{columns}; expected {time}n + 1 frames and sizes in multiples of "
                f"{height}x{width}: trim or resize it."
            )
        # In encoding, the model counts rows after folding pixels into channels; in decoding, before.
        self._tile(rows // height, columns // width, height // (self.model.config.patch_size or 1))
        mode = self.model.encode(video.to(self.model.dtype)).latent_dist.mode()
        return (mode - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, T, h, w) normalised -> (B, 3, F, H, W) clamped to [-1, 1]."""
        self._tile(latents.shape[3], latents.shape[4], self.stride[1])
        return self.model.decode((latents * self.std + self.mean).to(self.model.dtype)).sample.clamp(-1, 1)


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def load_vae(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> WanVAE:
    """Load a frozen VAE from a diffusers folder or from an original `Wan2.1_VAE.pth`.

    The original file holds no config: base width and latent channels are read from its tensors, the rest is Wan2.1.
    On device "meta" only headers are read and checked. Raises FileNotFoundError, CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise MissingFileError(f"{path} has no config.json; expected a diffusers AutoencoderKLWan folder.")
        config = read_json(path / "config.json")
        tensors: NamedTensors = read_tensors(path, device)
    else:
        renamed = {vae_to_diffusers(name): tensor for name, tensor in read_tensors(path, device)}
        config, tensors = _config_from_original(renamed), renamed.items()
    model = build_empty(lambda: AutoencoderKLWan.from_config(config))
    fill_module(model, tensors, path, lambda name: dtype, name_in_file=str if path.is_dir() else vae_to_original)
    return WanVAE(model).to(device).eval().requires_grad_(False)


def save_vae(
    vae: WanVAE,
    path: Path | str,
    dtype: torch.dtype | None = None,
    layout: Literal["diffusers", "original"] = "diffusers",
) -> None:
    """Write a diffusers folder, or the one file (`Wan2.1_VAE.pth`) of the original layout, whole or not at all.

    Raises ValueError when the original layout, which only has the Wan2.1 topology and its statistics, cannot represent
    this VAE; CheckpointError for NaN, DiskFullError.
    """
    path, state = Path(path), vae.model.state_dict()
    if layout == "original":
        sizes = _config_from_original(state)
        refuse_unsaid(vae.model.config, build_empty(lambda: AutoencoderKLWan.from_config(sizes)).config)
        write_torch_file(path, {vae_to_original(name): tensor for name, tensor in state.items()}, dtype)
    else:
        write_shards(path, state, "diffusion_pytorch_model", dtype)
        write_json(path / "config.json", {**dict(vae.model.config), "_class_name": "AutoencoderKLWan"})


def _config_from_original(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first, latent = tensors.get("encoder.conv_in.weight"), tensors.get("post_quant_conv.weight")
    # Where either is absent the defaults are used, and the strict load lists what is missing.
    return {
        **({"base_dim": first.shape[0]} if first is not None else {}),
        **({"z_dim": latent.shape[0]} if latent is not None else {}),
    }
