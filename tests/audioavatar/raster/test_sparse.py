"""The sparse rasteriser against closed forms and a dense sum over all pixels and particles in float64."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioavatar.camera import frontal_camera
from audioavatar.config import Backend, RasterConfig
from audioavatar.particles import Particles, round_particles
from audioavatar.raster.projection import Splats, project
from audioavatar.raster.render import layers, render, uses_gsplat
from audioavatar.raster.sparse import composite, count_pairs

WHOLE = RasterConfig(alpha_min=1e-12, transmittance_min=0.0)  # nothing is cut off


def cloud(count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Particles:
    """Particles of random shape, turn, colour and opacity in front of a camera."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    mean = (draw(count, 3) - 0.5) * torch.tensor([size, size, size / 2])
    return Particles(
        mean=mean,
        quaternion=torch.nn.functional.normalize(draw(count, 4) - 0.5, dim=1),
        log_scale=(0.5 + draw(count, 3) * 1.5).log(),
        opacity=draw(count) * 4 - 1,
        colour=draw(count, 3),
        part=torch.zeros(count, dtype=torch.int64),
    ).to(dtype)


def dense(splats: Splats, width: int, height: int, config: RasterConfig) -> tuple[Tensor, Tensor]:
    """The definition: every particle at every pixel, front to back, in float64."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij"
    )
    pixels = torch.stack([x, y], dim=-1)
    pictures, coverages = [], []
    for centre, covariance, depth, opacity, colour in zip(*splats, strict=True):
        left, picture = torch.ones_like(x), torch.zeros(height, width, colour.shape[-1], dtype=torch.float64)
        for i in depth.argsort(stable=True).tolist():
            matrix = covariance[i][[0, 1, 1, 2]].reshape(2, 2).inverse()
            apart = pixels - centre[i]
            alpha = opacity[i] * (-0.5 * ((apart @ matrix) * apart).sum(-1)).exp()
            alpha = torch.where(alpha >= config.alpha_min, alpha.clamp_max(config.alpha_max), 0.0)
            alpha = torch.where(left * (1 - alpha) > config.transmittance_min, alpha, 0.0)
            picture = picture + (left * alpha)[..., None] * colour[i]
            left = left * (1 - alpha)
        pictures.append(picture)
        coverages.append(1 - left)
    return torch.stack(pictures), torch.stack(coverages)


def one(deviation: float, opacity: float, size: int) -> Particles:
    mean = torch.zeros(1, 3, dtype=torch.float64)
    return round_particles(mean, deviation, torch.ones(1, 3), torch.zeros(1), opacity)


def test_one_gaussian_is_its_closed_form_and_its_integral() -> None:
    particle, camera = one(2.0, 0.7, 41), frontal_camera(41, 41)
    splats = project(particle, camera, blur=0.3, near=0.01)
    assert splats.covariance[0, 0].tolist() == pytest.approx([4.3, 0, 4.3], abs=1e-12)
    _, coverage = composite(splats, 41, 41, WHOLE)
    distance = torch.arange(41, dtype=torch.float64) + 0.5 - 20.5
    expected = 0.7 * (-0.5 * (distance**2 + distance[:, None] ** 2) / 4.3).exp()
    assert (coverage[0] - expected).abs().max() < 1e-12
    assert float(coverage.sum()) == pytest.approx(0.7 * 2 * math.pi * 4.3, rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sparse_equals_dense(dtype: torch.dtype, tolerance: float) -> None:
    camera = frontal_camera(24, 20)
    splats = project(cloud(300, 24, dtype=dtype), camera, 0.3, 0.01)
    exact = dense(Splats(*(each.double() for each in splats)), 24, 20, WHOLE)
    for result, expected in zip(composite(splats, 24, 20, WHOLE), exact, strict=True):
        assert (result - expected).abs().max() < tolerance


def test_sparse_equals_dense_with_equal_truncation_and_several_frames() -> None:
    camera = frontal_camera(24, 20)
    particles = cloud(150, 24)
    particles = particles.moved(torch.stack([torch.zeros(150, 3), torch.full((150, 3), 0.7)]).double())
    splats = project(particles, camera, 0.3, 0.01)
    for config in (RasterConfig(), RasterConfig(alpha_max=0.99)):
        for result, expected in zip(composite(splats, 24, 20, config), dense(splats, 24, 20, config), strict=True):
            assert result.shape[0] == 2 and (result - expected).abs().max() < 1e-10


def test_gradients_equal_those_of_the_dense_sum() -> None:
    camera, config = frontal_camera(16, 12), RasterConfig()
    target = torch.rand(1, 12, 16, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = []
    for draw in (composite, dense):
        particles = cloud(60, 14, seed=5)
        leaves = [getattr(particles, n).requires_grad_() for n in ("mean", "quaternion", "log_scale", "opacity")]
        leaves.append(particles.colour.requires_grad_())
        picture, coverage = draw(project(particles, camera, 0.3, 0.01), 16, 12, config)
        (torch.cat([picture, coverage[..., None]], dim=-1) - target).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*gradients, strict=True):
        assert (ours - exact).abs().max() < 1e-10 * max(1.0, float(exact.abs().max()))


def test_gradcheck_of_all_five_inputs() -> None:
    camera, particles = frontal_camera(5, 4), cloud(2, 3, seed=2)
    names = ("mean", "quaternion", "log_scale", "opacity", "colour")

    def draw(*values: Tensor) -> tuple[Tensor, Tensor]:
        return layers(replace(particles, **dict(zip(names, values, strict=True))), camera, WHOLE)

    assert torch.autograd.gradcheck(draw, [getattr(particles, name).clone().requires_grad_() for name in names])


def test_the_nearer_particle_is_in_front() -> None:
    camera = frontal_camera(9, 9)
    for near_first in (True, False):
        z = torch.tensor([-1.0, 1.0] if near_first else [1.0, -1.0])
        mean = torch.stack([torch.zeros(2), torch.zeros(2), z], dim=1)
        red_green = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
        pair = round_particles(mean, 2.0, red_green, torch.zeros(2), 0.5)
        middle = render(pair, camera)[0, 4, 4].tolist()
        assert middle == pytest.approx([0.5, 0.25, 0] if near_first else [0.25, 0.5, 0], abs=1e-3)


def test_nothing_behind_beside_or_absent_is_drawn() -> None:
    camera = frontal_camera(12, 10)
    mean = torch.tensor([[0.0, 0, -1000], [500, 0, 0], [0, -500, 0]])
    hidden = round_particles(mean, 1.0, torch.ones(3, 3), torch.zeros(3), 0.9)
    hidden.mean.requires_grad_()
    for particles in (hidden, hidden.chosen(torch.zeros(3, dtype=torch.bool))):
        picture, coverage = layers(particles, camera)
        assert picture.shape == (1, 10, 12, 3) and not picture.any() and not coverage.any()
        (picture.sum() + coverage.sum()).backward()
    assert hidden.mean.grad is not None and not hidden.mean.grad.any()


def test_long_thin_and_opaque_particles_stay_finite() -> None:
    particles = cloud(40, 16, dtype=torch.float32)
    extreme = replace(particles, log_scale=particles.log_scale * 4 - 2, opacity=particles.opacity * 20)
    extreme.mean.requires_grad_()
    picture, coverage = layers(extreme, frontal_camera(16, 16))
    (picture.square().sum() + coverage.sum()).backward()
    assert bool(picture.isfinite().all()) and bool(extreme.mean.grad.isfinite().all())  # type: ignore[union-attr]
    assert bool(((coverage >= 0) & (coverage <= 1)).all())


def test_a_background_shows_where_no_particle_is() -> None:
    sky = torch.full((8, 8, 3), 0.25)
    picture = render(one(0.5, 0.9, 8).to(torch.float32), frontal_camera(8, 8), background=sky)
    assert picture[0, 0, 0].tolist() == [0.25] * 3 and float(picture[0, 4, 4].max()) > 0.3


def test_cost_is_bounded_in_pairs_and_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = (torch.rand(10_000, 3, generator=generator) - 0.5) * torch.tensor([90.0, 90, 10])
    particles = round_particles(mean, 1.0, torch.rand(10_000, 3), torch.zeros(10_000), 0.95)
    particles.mean.requires_grad_()
    camera = frontal_camera(128, 128)
    best = 60.0
    for _ in range(2):  # CPU time varies on a busy machine: the better of two
        start = time.process_time()
        layers(particles, camera)[0].sum().backward()
        best = min(best, time.process_time() - start)
    assert best < 0.6
    few = round_particles(mean[:1000] * 0.5, 0.9, mean[:1000], torch.zeros(1000), 0.95)
    assert count_pairs(project(few, frontal_camera(64, 64), 0.3, 0.01), 64, 64, RasterConfig()) < 60_000


def test_every_backend_that_is_here_gives_the_same_image_and_gradients() -> None:
    """Ours in float64 on the CPU against ours in float32 and, where there are CUDA and gsplat, against gsplat."""

    def rendered(backend: Backend, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        particles = cloud(300, 64).to(device).to(dtype)
        mean = particles.mean.clone().requires_grad_()
        image = render(replace(particles, mean=mean), frontal_camera(64, 64), RasterConfig(backend=backend))
        (gradient,) = torch.autograd.grad((image * image.detach().flip(1)).sum(), mean)
        return image.detach().cpu().double(), gradient.cpu().double().flatten()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    here: list[Backend] = ["torch", "gsplat"] if uses_gsplat(RasterConfig(), torch.device(device)) else ["torch"]
    image, gradient = rendered("torch", "cpu", torch.float64)
    for backend in here:
        other, moved = rendered(backend, device, torch.float32)
        assert float((other - image).abs().max()) < 2e-3, backend
        assert float(torch.nn.functional.cosine_similarity(moved, gradient, dim=0)) > 0.999, backend
