"""The video autoencoder at 480p in tiles: what they save in memory, and what the shared borders cost."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from omniavatar.encoders.vae import WanVAE
from tests.benchmarks.measure import Row, compare, compare_memory

Work = Callable[[], Tensor]


def works(vae: WanVAE) -> dict[str, Work]:
    """Both directions on five frames of 480 x 832."""
    video, latents = torch.rand(1, 3, 5, 480, 832) * 2 - 1, torch.randn(1, 16, 2, 60, 104)
    return {"encode": lambda: vae.encode(video), "decode": lambda: vae.decode(latents)}


@pytest.mark.parametrize("way", ["encode", "decode"])
@torch.inference_mode()
def test_vae_in_tiles(way: str, report: Callable[[Row], None]) -> None:
    """The Wan2.1 topology with 4 channels for 96; memory counts torch's tensors, not scratch space of kernels. Borders
    of 16 latents, for latents and pixels no further from untiled ones than upstream's, cost 1.46 of the arithmetic."""
    torch.manual_seed(0)
    vae = WanVAE(AutoencoderKLWan(base_dim=4).eval())
    work = works(vae)[way]

    def ours() -> Tensor:
        vae.set_tiling(True)
        return work()

    def peer() -> Tensor:
        vae.set_tiling(False)
        return work()

    whole = peer()
    assert (ours() - whole).abs().mean() < 0.1 * whole.std()
    report(compare_memory(f"VAE {way}, 5 frames of 480p in tiles", "untiled", ours, peer, aim=0.5))
    report(compare(f"VAE {way}, 5 frames of 480p in tiles", "untiled", ours, peer, aim=1.6, rounds=2))
