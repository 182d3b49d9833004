"""The second system: its rasteriser against the CPU and gsplat, a frame, a step of a fit, a talk."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar, Mouth
from audioavatar.camera import Camera, frontal_camera
from audioavatar.config import Backend, RasterConfig, SayConfig
from audioavatar.graph import neighbour_graph
from audioavatar.particles import Particles
from audioavatar.raster.render import render
from audioavatar.regularisers import arap
from common.constants import AUDIO_RATE, FPS
from miniature.weights import model_paths
from pipelines.gpu_drill.device import SEED, relative_error
from pipelines.gpu_drill.drill import Bench, LeftOutError
from pipelines.gpu_drill.report import Value

CHECKED, CHECKED_SIDE = 300, 64  # particles and side of the images that are compared
FRAMES = 4  # frames of a step of a fit


def correct(bench: Bench) -> Iterator[Value]:
    """The sparse rasteriser in float32 on this device against float64 on the CPU: image and gradients."""
    image, gradient = _image_and_gradient(_cloud(CHECKED, CHECKED_SIDE).to(torch.float64), "torch")
    found, moved = _image_and_gradient(_cloud(CHECKED, CHECKED_SIDE).to(bench.device.torch_device), "torch")
    yield Value("image error", relative_error(found, image), "", "<= 1e-4", "against float64 on the CPU")
    yield Value("gradient error", relative_error(moved, gradient), "", "<= 1e-3", "of the means")


def against_gsplat(bench: Bench) -> Iterator[Value]:
    """Ours against gsplat with equal constants, on the device."""
    import gsplat

    if bench.device.torch_device.type != "cuda":
        raise LeftOutError("gsplat composites on CUDA only")
    cloud = _cloud(CHECKED, CHECKED_SIDE).to(bench.device.torch_device)
    (ours, ours_moved), (theirs, theirs_moved) = (
        _image_and_gradient(cloud, "torch"),
        _image_and_gradient(cloud, "gsplat"),
    )
    note = f"gsplat {gsplat.__version__}"
    yield Value("largest difference", float((ours - theirs).abs().max()), "", "<= 2e-3", note)
    cosine = torch.nn.functional.cosine_similarity(ours_moved.flatten(), theirs_moved.flatten(), dim=0)
    yield Value("cosine of the gradients", float(cosine), "", ">= 0.999", note)
    particles, camera = _subject(bench)
    backends: tuple[Backend, ...] = ("torch", "gsplat")
    for backend in backends:
        with torch.inference_mode():
            draw = partial(render, particles, camera, RasterConfig(backend=backend))
            yield Value(f"frame by {backend}", 1000 * bench.device.seconds(draw, bench.sizes.rounds), "ms")


def frame(bench: Bench) -> Iterator[Value]:
    """A frame, and a frame with its backward pass."""
    particles, camera = _subject(bench)
    with torch.inference_mode():
        seconds = bench.device.seconds(lambda: render(particles, camera), bench.sizes.rounds)
    note = f"{len(particles)} particles, {camera.width} x {camera.height}"
    yield Value("frame", 1000 * seconds, "ms", note=note)
    mean = particles.mean.clone().requires_grad_()

    def both() -> None:
        render(replace(particles, mean=mean), camera).square().mean().backward()

    yield Value("frame and gradients", 1000 * bench.device.seconds(both, bench.sizes.rounds), "ms", note=note)


def fit_step(bench: Bench) -> Iterator[Value]:
    """A step of Adam on shifts and growth of a few frames, with the price on distortion."""
    particles, camera = _subject(bench)
    graph = neighbour_graph(particles.mean.cpu(), particles.part.cpu())
    graph = replace(graph, index=graph.index.to(particles.mean.device), weight=graph.weight.to(particles.mean))
    shift = torch.zeros(FRAMES, *particles.mean.shape, device=particles.mean.device).requires_grad_()
    growth = torch.zeros_like(shift).requires_grad_()
    target = torch.zeros(FRAMES, camera.height, camera.width, 3, device=particles.mean.device)
    optimiser = torch.optim.Adam([shift, growth], lr=0.01)

    def step() -> None:
        moved = particles.moved(shift, growth=growth)
        loss = (render(moved, camera) - target).abs().mean() + 0.03 * arap(moved.mean, particles.mean, graph)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    yield Value("step", 1000 * bench.device.seconds(step, bench.sizes.rounds), "ms", note=f"{FRAMES} frames")
    yield Value("peak", bench.device.peak() / 1e9, "GB")


def say(bench: Bench) -> Iterator[Value]:
    """A talk driven by the shipped motion, rendered on the host as `omniavatar avatar say` does; no video encoded."""
    from audioavatar.driven.model import load_motion_model
    from audioavatar.say import SHIPPED_MOTION, AudioAvatar
    from omniavatar.encoders.audio import load_audio_encoder

    full = bench.sizes.name == "full"
    side, count, seconds = (128, 2000, 4) if full else (32, 200, 1)
    particles = _cloud(count, 64)
    mouth = Mouth(torch.tensor([0.0, 12.0]), 8.0, 0.0, torch.tensor([[-8.0, 12.0], [8.0, 12.0]]))
    face, gestures = torch.tensor([16.0, 8.0, 48.0, 52.0]), torch.zeros(len(GESTURES), len(particles), 2)
    avatar = Avatar(particles, torch.zeros(64, 64, 3), mouth, face, gestures, "drill")
    encoder = load_audio_encoder(model_paths()["audio_encoder"])
    speaker = AudioAvatar(avatar, load_motion_model(SHIPPED_MOTION), encoder)
    voice = 0.1 * np.random.default_rng(SEED).standard_normal(seconds * AUDIO_RATE).astype(np.float32)
    stream = speaker.stream(SayConfig(longest_side=side))
    with bench.device.span() as span:
        next(stream.push(voice[: AUDIO_RATE // 5]))
    yield Value("first frame", 1000 * span.seconds, "ms", "<= 150" if full else "", "after 200 ms of audio")
    with bench.device.span() as span:
        frames = sum(len(piece) for piece in (*stream.push(voice[AUDIO_RATE // 5 :]), *stream.finish()))
    assert frames == seconds * FPS - 1
    yield Value("talk", frames / span.seconds, "frames/s", ">= 25" if full else "", f"{count} particles, {side} px")


def _subject(bench: Bench) -> tuple[Particles, Camera]:
    count, side = (50_000, 512) if bench.sizes.name == "full" else (CHECKED, 32)
    return _cloud(count, side).to(bench.device.torch_device), frontal_camera(side, side)


def _cloud(count: int, side: int) -> Particles:
    """Particles of random colour, turn and depth all over an image, about a pixel or two wide."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return Particles(
        mean=(draw(count, 3) - 0.5) * torch.tensor([side, side, side / 4]),
        quaternion=torch.nn.functional.normalize(draw(count, 4) - 0.5, dim=1),
        log_scale=(0.6 + draw(count, 3)).log(),
        opacity=4 * draw(count) - 1,
        colour=draw(count, 3),
        part=torch.zeros(count, dtype=torch.int64),
    )


def _image_and_gradient(particles: Particles, backend: Backend) -> tuple[Tensor, Tensor]:
    """The image (H, W, 3), and the gradient (N, 3) of a weighted sum of it."""
    mean = particles.mean.clone().requires_grad_()
    image = render(
        replace(particles, mean=mean), frontal_camera(CHECKED_SIDE, CHECKED_SIDE), RasterConfig(backend=backend)
    )[0]
    weight = torch.rand(image.shape, generator=torch.Generator().manual_seed(SEED)).to(image)
    (gradient,) = torch.autograd.grad((weight * image).sum(), mean)
    return image.detach(), gradient
