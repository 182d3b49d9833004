"""The frozen Wan video autoencoder behind two calls, on normalised latents.

Shapes: B batch, F = 4(T - 1) + 1 pixel frames, T latent frames, H = 8 h, W = 8 w.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from omniavatar.key_names import vae_to_diffusers
from omniavatar.tensor_files import NamedTensors, build_empty, fill_module, read_tensors


class WanVAE(nn.Module):
    """AutoencoderKLWan of any topology (Wan2.1, or with pixel patches as in Wan2.2), used without sampling noise.

    Causal in time: the first k latents depend on the first 4k - 3 frames alone, and the other way round.
    """

    mean: Tensor  # (1, 16, 1, 1, 1)
    std: Tensor

    def __init__(self, model: AutoencoderKLWan):
        super().__init__()
        self.model = model
        self.register_buffer("mean", _per_channel(model.config.latents_mean), persistent=False)
        self.register_buffer("std", _per_channel(model.config.latents_std), persistent=False)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent in time, height and width: (4, 8, 8) for every published Wan2.1 file."""
        config = self.model.config
        space = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        return 2 ** sum(config.temperal_downsample), space, space

    def set_tiling(self, enabled: bool) -> None:
        """Work on overlapping tiles: less memory, and slightly other latents (off for extraction)."""
        if enabled:
            self.model.enable_tiling()
        else:
            self.model.disable_tiling()

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> (B, 16, T, h, w): the posterior's mean, (mu - mean) / std per channel.

        Raises ValueError unless F = 4n + 1 and H, W are multiples of the stride (a remainder would be lost).
        """
        time, height, width = self.stride
        frames, rows, columns = video.shape[2:]
        if frames % time != 1 % time or rows % height or columns % width:
            raise ValueError(
                f"A video of {frames} frames, {rows}x{columns}; expected {time}n + 1 frames and sizes in multiples of "
                f"{height}x{width}: trim or resize it."
            )
        mode = self.model.encode(video.to(self.model.dtype)).latent_dist.mode()
        return (mode - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, T, h, w) normalised -> (B, 3, F, H, W) clamped to [-1, 1]."""
        return self.model.decode((latents * self.std + self.mean).to(self.model.dtype)).sample.clamp(-1, 1)


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def load_vae(path: Path | str, dtype: torch.dtype = torch.float32) -> WanVAE:
    """Load a frozen VAE from a diffusers folder or from an original `Wan2.1_VAE.pth`.

    The original file holds no config: base width and latent channels are read from its tensors, the rest is Wan2.1.
    Raises FileNotFoundError, CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FileNotFoundError(f"{path} has no config.json; expected a diffusers AutoencoderKLWan folder.")
        config = json.loads((path / "config.json").read_text())
        tensors: NamedTensors = read_tensors(path)
    else:
        renamed = {vae_to_diffusers(name): tensor for name, tensor in read_tensors(path)}
        config, tensors = _config_from_original(renamed), renamed.items()
    model = build_empty(lambda: AutoencoderKLWan.from_config(config))
    fill_module(model, tensors, path, lambda name: dtype)
    return WanVAE(model).eval().requires_grad_(False)


def _config_from_original(tensors: dict[str, Tensor]) -> dict[str, int]:
    first, latent = tensors.get("encoder.conv_in.weight"), tensors.get("post_quant_conv.weight")
    # With either absent the defaults stand, and the strict load lists what the file lacks.
    return {
        **({"base_dim": first.shape[0]} if first is not None else {}),
        **({"z_dim": latent.shape[0]} if latent is not None else {}),
    }
