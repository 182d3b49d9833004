"""Closed forms of the regularisers."""

import math

import pytest
import torch
from torch import Tensor

from audioavatar.graph import neighbour_graph
from audioavatar.particles import BODY, FACE, rotation_matrix
from audioavatar.regularisers import arap, dct_matrix, isometry, locality, spectral, trajectory


def points(count: int = 500, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10


def edge_energy(mean: Tensor) -> Tensor:
    graph = neighbour_graph(mean)
    return (graph.weight * (mean[graph.index] - mean[:, None]).square().sum(-1)).sum(1).mean()


def test_rigid_motion_costs_nothing_scale_its_closed_form_and_a_mirror_image_much() -> None:
    mean = points()
    graph = neighbour_graph(mean)
    turn = rotation_matrix(torch.tensor([0.3, 0.5, -0.2, 0.7], dtype=torch.float64))
    rigid = (mean @ turn.T + torch.tensor([3.0, -1, 2]))[None]
    assert float(arap(rigid, mean, graph)) < 1e-20
    assert float(isometry(torch.cat([mean[None], rigid]), graph)) < 1e-20
    scaled = float(arap(1.2 * mean[None], mean, graph))
    assert scaled == pytest.approx(0.04 * float(edge_energy(mean)), rel=1e-12)
    mirrored = mean * torch.tensor([-1.0, 1, 1])
    assert float(arap(mirrored[None], mean, graph)) > 0.1 * float(edge_energy(mean))
    # Distances alone do not see it: that is why both exist.
    assert float(isometry(torch.stack([mean, mirrored]), graph)) < 1e-20


def test_in_the_plane_the_closed_form_rotation_is_the_best() -> None:
    mean = points()[:, :2]
    graph = neighbour_graph(mean)
    angle = torch.tensor(2.4, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    assert float(arap((mean @ turn.T)[None], mean, graph)) < 1e-20
    assert float(arap(1.2 * mean[None], mean, graph)) == pytest.approx(0.04 * float(edge_energy(mean)), rel=1e-12)
    assert float(arap((mean * torch.tensor([-1.0, 1]))[None], mean, graph)) > 0.1 * float(edge_energy(mean))


def test_one_moved_point_costs_and_pulls_on_its_neighbourhood_alone() -> None:
    mean = points()
    graph = neighbour_graph(mean)
    moved = mean[None].clone()
    moved[0, 7] += 0.5
    moved.requires_grad_()
    energy = arap(moved, mean, graph)
    energy.backward()
    assert energy.item() > 0 and moved.grad is not None
    touched = set(moved.grad[0].norm(dim=1).gt(1e-12).nonzero()[:, 0].tolist())
    near = {7, *graph.index[7].tolist(), *(graph.index == 7).nonzero()[:, 0].tolist()}
    around = near | {i for n in near for i in graph.index[n].tolist()}
    assert 7 in touched and touched <= around and float(moved.grad[0, 7].sum()) > 0


def test_locality_of_a_constant_field_is_zero_and_of_one_offset_is_not() -> None:
    graph = neighbour_graph(points())
    field = torch.ones(3, 500, 3, dtype=torch.float64)
    assert float(locality(field, graph)) < 1e-20
    field[1, 3] += 1
    assert float(locality(field, graph)) > 1e-4


def test_spectrum_above_the_cutoff_costs_its_closed_form_and_below_it_nothing() -> None:
    frames = 50
    transform = dct_matrix(frames)
    assert (transform @ transform.T - torch.eye(frames, dtype=torch.float64)).abs().max() < 1e-12
    offset = torch.zeros(frames, 1, 3, dtype=torch.float64)
    for row, region in ((10, BODY), (40, FACE), (49, BODY), (20, FACE)):  # row f is f / 4 Hz
        offset[:, 0, 1] = 2 * transform[row]
        cutoff = 3.0 if region == BODY else 10.0
        excess = max(0.0, (row / 4 - cutoff) / (12.5 - cutoff))
        assert float(spectral(offset, torch.tensor([region]))) == pytest.approx(4 * excess**2, abs=1e-12)


def test_energy_is_the_same_in_time_and_frequency() -> None:
    signal = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float((dct_matrix(32) @ signal).square().sum() - signal.square().sum()) == pytest.approx(0, abs=1e-10)


def test_trajectory_is_the_squared_distance_and_ignores_what_is_hidden() -> None:
    track = points(20)[None, :, :2].repeat(3, 1, 1)
    moved = track.clone()
    moved[1, 4] += torch.tensor([3.0, 4.0])
    assert float(trajectory(track, moved)) == pytest.approx(25, rel=1e-14)
    visible = torch.ones(3, 20)
    visible[1, 4] = 0
    for reduction in ("sum", "mean"):
        assert float(trajectory(track, moved, visible, reduction)) == 0
    assert math.isfinite(float(trajectory(track, moved, visible * 0, "mean")))
