"""Decoders: the canonical picture before training, bit by bit; the principal components' error in linear mode."""

import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.driven.decoder import LinearDecoder, ParticleDecoder
from audioavatar.raster.render import render


def test_an_untrained_decoder_renders_the_canonical_picture_bit_by_bit(avatar: Avatar) -> None:
    particles = avatar.particles
    offset = ParticleDecoder(9, 16, 8)(torch.randn(1, 24), particles.mean / 32, particles.part)
    moved = particles.moved(offset[..., :3], offset[..., 3:6], offset[..., 6:])
    assert torch.equal(render(moved, avatar.camera), render(particles, avatar.camera))


def linear_motion(frames: int, seed: int) -> Tensor:
    """Offsets (T, 50, 4) of six numbers a frame, with a little noise."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
    rows = torch.randn(frames, 6, generator=generator) @ torch.randn(6, 200, generator=fixed)
    return (rows + 0.1 * torch.randn(frames, 200, generator=generator)).unflatten(1, (50, 4))


def test_linear_mode_is_as_good_as_principal_components_and_stays_so_in_training() -> None:
    offset, held = linear_motion(100, 0), linear_motion(60, 1)
    place = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
    decoder = LinearDecoder.of(offset, place, 6)

    def error(values: Tensor) -> float:
        with torch.no_grad():
            return float((decoder(decoder.encode(values)) - values).square().mean())

    rows, mean = offset.flatten(1), offset.flatten(1).mean(0)
    _, _, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    best = [
        ((v.flatten(1) - mean) @ (torch.eye(200) - axes[:6].T @ axes[:6])).square().mean().item()
        for v in (offset, held)
    ]
    assert abs(error(offset) / best[0] - 1) < 1e-3 and abs(error(held) / best[1] - 1) < 1e-3
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    for _ in range(20):
        loss = (decoder(decoder.encode(offset)) - offset).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert error(held) < 1.05 * best[1]
    five = LinearDecoder.of(offset, place, 5)  # one number too few fails the same threshold
    assert float((five(five.encode(held)) - held).square().mean().detach()) > 1.05 * best[1]
