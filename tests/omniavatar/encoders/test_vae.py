from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.encoders.vae import WanVAE, load_vae, save_vae
from omniavatar.planning.tiles import LARGEST_TILE, OVERLAP, Tiles, plan_tiles
from tests.omniavatar import original_vae
from tests.omniavatar.conftest import make_vae

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


@torch.no_grad()
def test_it_computes_what_the_original_file_was_made_for(tmp_path: Path) -> None:
    """Against a second writing of the network in float64, whose names and shapes are those of the file."""
    weights = original_vae.random_weights(width=6)
    assert len(weights) == 194
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    vae = load_vae(tmp_path / "Wan2.1_VAE.pth")
    exact = {name: tensor.double() for name, tensor in weights.items()}
    clip, latents = video(9, 40)[..., :32], torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    means, pixels = original_vae.encode(exact, clip.double()), original_vae.decode(exact, latents.double())
    assert means.std() > 0.3 and pixels.std() > 0.3 and (pixels.abs() < 1).double().mean() > 0.8
    assert (vae.encode(clip) - means).abs().max() < 1e-6
    assert (vae.decode(latents) - pixels).abs().max() < 1e-5


def test_wrapped_original_files_load_too(tmp_path: Path) -> None:
    state = original_vae.random_weights(width=4)
    contents = (state, {"model_state": state}, {f"model.{name}": value for name, value in state.items()})
    for number, content in enumerate(contents):
        torch.save(content, tmp_path / f"{number}.pth")
    first, *others = (load_vae(tmp_path / f"{number}.pth").encode(video(5)) for number in range(3))
    assert all(torch.equal(first, other) for other in others)


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


def test_both_layouts_come_back_as_they_were(wan21_vae: WanVAE, tmp_path: Path) -> None:
    save_vae(wan21_vae, tmp_path / "a.pth", layout="original")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in original_vae.random_weights(width=4).items()
    }
    save_vae(load_vae(tmp_path / "a.pth"), tmp_path / "folder", torch.bfloat16)
    save_vae(load_vae(tmp_path / "folder", torch.bfloat16), tmp_path / "b.pth", layout="original")
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    assert (
        all(torch.equal(again[name], value.bfloat16()) for name, value in state.items())
        and again.keys() == state.keys()
    )
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "folder")
    assert torch.equal(WanVAE(theirs).encode(video(5)), load_vae(tmp_path / "folder").encode(video(5)))


def test_what_the_original_layout_cannot_say_is_not_written(patch_vae: WanVAE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot represent .*'patch_size': 2"):
        save_vae(patch_vae, tmp_path / "a.pth", layout="original")
    shifted = WanVAE(make_vae(latents_mean=[0.5] * 16))
    with pytest.raises(ValueError, match="latents_mean"):
        save_vae(shifted, tmp_path / "a.pth", layout="original")
    assert not list(tmp_path.iterdir())


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.pth does not exist"):
        load_vae(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_vae(tmp_path)


@pytest.mark.parametrize("size", [(60, 104), (104, 60), (50, 90), (90, 90), (90, 160), (45, 61), (13, 300)])
def test_tiles_cover_the_frame_and_overlap_where_they_are_blended(size: tuple[int, int]) -> None:
    tiles = plan_tiles(*size)
    assert tiles is not None and tiles.height * tiles.width <= LARGEST_TILE
    work = 1
    for length, tile, step in zip(size, (tiles.height, tiles.width), (tiles.down, tiles.across), strict=True):
        starts = range(0, length, step)
        assert (tile == length and len(starts) == 1) or tile == step + OVERLAP
        assert length - starts[-1] >= min(OVERLAP, length)  # so the last tile has all that it shares
        work *= sum(min(tile, length - start) for start in starts)
    # Borders wide enough for the error below; upstream's tiles, always on, compute everything four times.
    assert work <= 1.9 * size[0] * size[1]


def test_the_plan_at_480p() -> None:
    assert plan_tiles(60, 104) == Tiles(60, 42, 60, 26)  # four strips across the longer side
    assert plan_tiles(104, 60) == Tiles(42, 60, 26, 60)
    assert plan_tiles(45, 45) is None
    with pytest.raises(ValueError, match="No tiles of at most 20 latents cover 60x104"):
        plan_tiles(60, 104, 20)


@pytest.fixture(scope="module")
def residual_vae() -> WanVAE:
    """The topology of Wan2.2's small video VAE: pixel patches, averaging shortcuts, 16 pixels per latent."""
    return WanVAE(make_vae(patch_size=2, in_channels=12, out_channels=12, is_residual=True, scale_factor_spatial=16))


@pytest.fixture(scope="module")
def miniature_vae() -> WanVAE:
    return load_vae(model_paths()["vae"])


@pytest.mark.parametrize("name", ["wan21_vae", "patch_vae", "residual_vae", "miniature_vae"])
@torch.no_grad()
def test_tiles_are_close_to_the_whole(name: str, request: pytest.FixtureRequest) -> None:
    """Every tile is placed where it belongs: off by a pixel, or in the wrong unit, the difference is the signal's."""
    vae: WanVAE = request.getfixturevalue(name)
    rows, columns = 3 * vae.stride[1], 40 * vae.stride[2]
    down, across = torch.meshgrid(torch.linspace(0, 2, rows), torch.linspace(0, 9, columns), indexing="ij")
    frames = [torch.stack([(across + 2 * down + k).sin(), (across - k).cos(), (3 * across).sin()]) for k in range(5)]
    clip = 0.5 * torch.stack(frames, dim=1)[None]
    whole = vae.encode(clip)
    pixels = vae.decode(whole)
    vae.set_tiling(True, largest_tile=108)
    assert plan_tiles(3, 40, 108) == Tiles(3, 36, 3, 20)
    widths: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    hooks = [
        half.register_forward_pre_hook(lambda module, given, seen=widths[name]: seen.add(given[0].shape[-1]))
        for name, half in vae.model.named_children()
        if name in widths
    ]
    tiled, tiled_pixels = vae.encode(clip), vae.decode(whole)
    vae.set_tiling(False)
    for hook in hooks:
        hook.remove()
    unit = vae.stride[2] // (vae.model.config.patch_size or 1)
    assert widths == {"encoder": {36 * unit, 20 * unit}, "decoder": {36, 20}}
    assert tiled.shape == whole.shape and tiled_pixels.shape == pixels.shape
    assert 0 < (tiled - whole).abs().mean() < 0.1 * whole.std()
    assert 0 < (tiled_pixels - pixels).abs().mean() < 0.1 * pixels.std()
    assert torch.equal(vae.encode(clip), whole)


def in_upstreams_tiles(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tile, step, unit: int, out: float):
    """`run` on overlapping tiles, blended as in the released wan_video_vae.py. `tile` and `step` (height, width) in
    latents of `unit` elements of x each, `out` elements of the result for one of x."""
    height, width = x.shape[3] // unit, x.shape[4] // unit
    starts = [
        [at for at in range(0, side, stride) if at < stride or at - stride + size < side]
        for side, size, stride in zip((height, width), tile, step, strict=True)
    ]
    total, weights = 0.0, 0.0
    scale = int(unit * out)
    for y in starts[0]:
        for x0 in starts[1]:
            part = run(x[..., y * unit : (y + tile[0]) * unit, x0 * unit : (x0 + tile[1]) * unit])
            ramps = []
            for at, size, stride, side, length in zip(
                (y, x0), tile, step, (height, width), part.shape[3:], strict=True
            ):
                ramp, border = torch.ones(length), (size - stride) * scale
                rise = (torch.arange(border) + 1) / border
                if at:
                    ramp[:border] = rise
                if at + size < side:
                    ramp[-border:] = rise.flip(0)
                ramps.append(ramp)
            mask = torch.minimum(ramps[0][:, None], ramps[1][None])
            pad = (x0 * scale, width * scale - x0 * scale - part.shape[4])
            pad += (y * scale, height * scale - y * scale - part.shape[3])
            total = total + torch.nn.functional.pad(part * mask, pad)
            weights = weights + torch.nn.functional.pad(mask, pad)
    return total / weights


@pytest.mark.soak
@torch.no_grad()
def test_our_tiles_are_no_further_from_the_whole_than_upstreams(wan21_vae: WanVAE) -> None:
    """At 400 x 720, in mean and at the worst place. Upstream: encode 34x34 every 18x16, decode 30x52 every 15x26."""
    picture = (
        torch.from_numpy(draw_clip(HELD_OUT_SEED, 0.04).frames[0].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    )
    image = torch.nn.functional.interpolate(picture, (400, 720), mode="bicubic")[:, :, None]
    latents = wan21_vae.encode(image)
    pixels = wan21_vae.decode(latents)
    theirs = (
        in_upstreams_tiles(wan21_vae.encode, image, (34, 34), (18, 16), 8, 1 / 8) - latents,
        in_upstreams_tiles(wan21_vae.decode, latents, (30, 52), (15, 26), 1, 8).clamp(-1, 1) - pixels,
    )
    wan21_vae.set_tiling(True)
    ours = wan21_vae.encode(image) - latents, wan21_vae.decode(latents) - pixels
    wan21_vae.set_tiling(False)
    for own, other in zip(ours, theirs, strict=True):
        assert 0 < own.abs().mean() <= other.abs().mean()
        assert own.abs().max() <= other.abs().max()


def test_a_video_of_one_tile_is_not_changed(wan21_vae: WanVAE) -> None:
    whole = wan21_vae.encode(video(5))
    wan21_vae.set_tiling(True)
    assert torch.equal(wan21_vae.encode(video(5)), whole)
    wan21_vae.set_tiling(False)
