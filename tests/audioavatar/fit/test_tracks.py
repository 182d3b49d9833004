"""Tracks in the fit: known deformations of the analytic person are found where nothing was tracked; colours alone find
other ones. Trackers on synthetic scenes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.canonical.procedural import motion_basis, procedural_person
from audioavatar.config import FitConfig
from audioavatar.fit.clip import fit_clip
from audioavatar.fit.tracks import ExactTracker, Tracks, flow_tracks, seen
from audioavatar.motion import Motion, pose, still
from audioavatar.raster.render import render

FRAMES, EVERY = 4, 6
GUIDED = FitConfig(
    whole=True, start_open=0, field_steps=8, field_blur=1.0, arap=0.3, locality=0.05, trajectory=100.0,
    particle_stages=((24, 0.7, 3.0, 0.2, 0.01),),
)  # fmt: skip
PHOTOMETRIC = replace(
    GUIDED, arap=0, locality=0, smooth=0, growth=0, hinge=0, isometry=0, spectral=0, trajectory=0, field_steps=0,
    particle_stages=((24, 0.7, 0.0, 0.2, 0.01),),
)  # fmt: skip


def deformed(avatar: Avatar, seed: int, size: float = 1.0) -> Motion:
    """All known motions at once, each along a curve of its own."""
    generator = torch.Generator().manual_seed(seed)
    basis = motion_basis(avatar.particles)
    t = torch.linspace(0, 1, FRAMES)
    shift = torch.zeros(FRAMES, len(avatar.particles), 2)
    for offset in basis.values():
        rate, phase, sign = torch.rand(3, generator=generator)
        amount = size * (0.5 + 0.5 * (4 * rate * t + 6.28 * phase).sin()) * (1 if sign > 0.5 else -1)
        shift += amount[:, None, None] * offset[:, :2]
    return replace(still(avatar, FRAMES), shift=shift)


def filmed(avatar: Avatar, motion: Motion) -> Tensor:
    picture = render(pose(avatar, motion), avatar.camera, background=avatar.backdrop)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def untracked_error(avatar: Avatar, truth: Motion, found: Motion) -> float:
    """Mean 2D distance of seen particles without a track from their true places, relative to that at rest."""
    visible = seen(pose(avatar, truth), avatar.camera)
    visible[:, ExactTracker(truth, EVERY)(avatar, torch.empty(0)).index] = False
    places, places_found = (avatar.camera.project(pose(avatar, motion).mean)[0] for motion in (truth, found))
    rest, _ = avatar.camera.project(avatar.particles.mean)
    return float((places_found - places).norm(dim=-1)[visible].mean() / (rest - places).norm(dim=-1)[visible].mean())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_untracked_particles_are_found_and_colours_alone_do_not_find_them(seed: int) -> None:
    avatar = procedural_person(400, seed)
    truth = deformed(avatar, seed)
    frames = filmed(avatar, truth)
    guided = fit_clip(avatar, frames, GUIDED, ExactTracker(truth, EVERY))
    control = fit_clip(avatar, frames, PHOTOMETRIC)
    assert untracked_error(avatar, truth, guided.motion) < 0.3
    assert untracked_error(avatar, truth, control.motion) > 0.6


def test_a_track_pulls_by_its_distance_and_a_hidden_one_not_at_all() -> None:
    avatar = procedural_person(400)
    rest = still(avatar, FRAMES)
    frames = filmed(avatar, rest)
    config = replace(GUIDED, field_steps=2, particle_stages=())
    tracks = ExactTracker(rest, EVERY)(avatar, frames)

    def fitted(change: Callable[[Tracks], Tracks]) -> Motion:
        return fit_clip(avatar, frames, config, lambda *_: change(tracks)).motion

    position, visible = tracks.position.clone(), tracks.visible.clone()
    position[:, 0] += 9.0
    visible[:, 0] = False
    assert torch.equal(
        fitted(lambda t: replace(t, visible=visible)).head, fitted(lambda t: Tracks(t.index, position, visible)).head
    )
    # Seen, it does.
    assert not torch.equal(fitted(lambda t: t).head, fitted(lambda t: replace(t, position=position)).head)


def test_flow_follows_a_moving_head_and_drops_what_disappears(avatar: Avatar) -> None:
    rest = still(avatar, 5)
    head = rest.head.clone()
    head[:, 0], head[:, 1] = torch.linspace(0, 4, 5), torch.linspace(0, -1.5, 5)
    motion = replace(rest, head=head)
    tracks = flow_tracks(avatar, filmed(avatar, motion))
    exact, _ = avatar.camera.project(pose(avatar, motion).mean[:, tracks.index])
    error, rest_error = (tracks.position - exact).norm(dim=-1), (exact - exact[0]).norm(dim=-1)
    kept = tracks.visible[-1]
    assert int(kept.sum()) > 0.4 * len(kept)
    assert float(error[-1, kept].median()) < 0.35 * float(rest_error[-1, kept].median())
    # Where the picture turns into noise most tracks end.
    frames = filmed(avatar, motion)
    frames[3:] = torch.randint(0, 255, frames[3:].shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert int(flow_tracks(avatar, frames).visible[-1].sum()) < 0.5 * int(kept.sum())
