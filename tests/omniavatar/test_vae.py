import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from omniavatar.tensor_files import CheckpointError
from omniavatar.vae import WanVAE, load_vae

BOTH = pytest.mark.parametrize("name", ["wan21_vae", "patch_vae"])


def video(frames: int, size: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@BOTH
def test_sizes_and_stride(name: str, request: pytest.FixtureRequest) -> None:
    vae: WanVAE = request.getfixturevalue(name)
    latents = vae.encode(video(9))
    assert vae.stride == (4, 8, 8)
    assert latents.shape == (1, 16, 3, 4, 4)
    decoded = vae.decode(latents * 5)
    assert decoded.shape == (1, 3, 9, 32, 32) and decoded.abs().max() <= 1


@BOTH
def test_prefixes_are_causal_exactly(name: str, request: pytest.FixtureRequest) -> None:
    vae: WanVAE = request.getfixturevalue(name)
    clip = video(13)
    latents = vae.encode(clip)
    pixels = vae.decode(latents)
    assert latents.std() > 0.01 and pixels.std() > 0.01
    for given in (1, 2, 3):
        frames = 4 * given - 3
        assert torch.equal(vae.encode(clip[:, :, :frames]), latents[:, :, :given])
        assert torch.equal(vae.decode(latents[:, :, :given]), pixels[:, :, :frames])


def test_latents_are_the_normalised_mean(wan21_vae: WanVAE) -> None:
    posterior = wan21_vae.model.encode(video(5)).latent_dist
    latents = wan21_vae.encode(video(5))
    assert torch.allclose(latents[:, 1], (posterior.mean[:, 1] + 0.7089) / 1.4541)
    assert torch.allclose(latents[:, 15], (posterior.mean[:, 15] + 0.2921) / 1.9160)
    assert torch.equal(wan21_vae.encode(video(5)), latents)
    unscaled = wan21_vae.model.decode(posterior.mean).sample
    assert (wan21_vae.decode(latents) - unscaled).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 32, 32), (9, 36, 32)])
def test_a_remainder_is_refused_and_not_dropped(wan21_vae: WanVAE, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]} frames, {shape[1]}x{shape[2]}"):
        wan21_vae.encode(torch.zeros(1, 3, *shape))


def original_name(name: str) -> str:
    """diffusers -> Wan2.1_VAE.pth, written apart from the loader: by the module order of the original."""
    name = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", name))
    name = name.replace("coder.conv_in.", "coder.conv1.").replace("coder.conv_out.", "coder.head.2.")
    name = name.replace("coder.norm_out.", "coder.head.0.").replace("down_blocks", "downsamples")
    name = name.replace("mid_block.resnets.0", "middle.0").replace("mid_block.resnets.1", "middle.2")
    name = name.replace("mid_block.attentions.0", "middle.1")
    up = re.search(r"up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)", name)
    if up:
        name = name.replace(up[0], f"upsamples.{int(up[1]) * 4 + (3 if up[3] is None else int(up[3]))}")
    if "downsamples" in name or "upsamples" in name or re.search(r"middle\.[02]", name):
        for ours, theirs in (("norm1", 0), ("conv1", 2), ("norm2", 3), ("conv2", 6)):
            name = re.sub(rf"(\.\d+)\.{ours}\.", rf"\1.residual.{theirs}.", name)
        name = name.replace(".conv_shortcut.", ".shortcut.")
    return name


def test_the_original_file_loads_under_its_own_names(wan21_vae: WanVAE, tmp_path: Path) -> None:
    state = {original_name(name): value for name, value in wan21_vae.model.state_dict().items()}
    for name in (
        "conv1.weight",
        "encoder.downsamples.0.residual.0.gamma",
        "encoder.downsamples.5.time_conv.weight",
        "decoder.upsamples.7.resample.1.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.middle.1.to_qkv.weight",
        "encoder.head.2.bias",
    ):
        assert name in state
    assert len(state) == 194
    for number, content in enumerate((state, {"model_state": state}, {f"model.{k}": v for k, v in state.items()})):
        torch.save(content, tmp_path / f"{number}.pth")
        loaded = load_vae(tmp_path / f"{number}.pth")
        assert torch.equal(loaded.encode(video(5)), wan21_vae.encode(video(5)))


def test_the_published_file_has_the_default_topology() -> None:
    with torch.device("meta"):
        assert len(AutoencoderKLWan().state_dict()) == 194


@BOTH
def test_diffusers_folders_load(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    vae: WanVAE = request.getfixturevalue(name)
    vae.model.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path)
    assert torch.equal(loaded.encode(video(5)), vae.encode(video(5)))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_wrong_files_are_refused(wan21_vae: WanVAE, tmp_path: Path) -> None:
    state = {original_name(name): value for name, value in wan21_vae.model.state_dict().items()}
    del state["conv2.bias"], state["conv1.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError) as caught:
        load_vae(tmp_path / "short.pth")
    assert len(caught.value.problems) == 2
    with pytest.raises(FileNotFoundError, match="absent.pth does not exist"):
        load_vae(tmp_path / "absent.pth")


def test_tiling_can_be_switched(wan21_vae: WanVAE) -> None:
    latents = torch.randn(1, 16, 1, 4, 40, generator=torch.Generator().manual_seed(1))
    whole = wan21_vae.decode(latents)
    wan21_vae.set_tiling(True)
    tiled = wan21_vae.decode(latents)
    wan21_vae.set_tiling(False)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert torch.equal(wan21_vae.decode(latents), whole)
