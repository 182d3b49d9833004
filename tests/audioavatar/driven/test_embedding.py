"""Contrast in closed form, retrieval and delays on a small world that is learnt."""

import math

import pytest
import torch
from torch import Tensor, nn

from audioavatar.driven.embedding import (
    LARGEST_KAPPA,
    contrast,
    embedding_loss,
    near_frames,
    patches,
    retrieval,
    similarity_by_offset,
)


def test_aligned_orthonormal_rows_and_alike_rows_have_closed_forms() -> None:
    rows = torch.eye(12, dtype=torch.float64)
    for kappa in (2.0, 14.0):
        assert float(contrast(rows, rows, kappa)) == pytest.approx(math.log(1 + 11 * math.exp(-kappa)), rel=1e-12)
    alike = torch.ones(12, 5, dtype=torch.float64)
    assert float(contrast(alike, alike)) == pytest.approx(math.log(12), rel=1e-12)
    assert float(contrast(rows, rows, 1e4)) == pytest.approx(math.log(1 + 11 * math.exp(-LARGEST_KAPPA)), abs=1e-12)


def test_swapping_the_sides_changes_nothing_and_ignored_pairs_count_for_nothing() -> None:
    a, b = torch.randn(2, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(contrast(a, b)) == pytest.approx(float(contrast(b, a)), rel=1e-12)
    mask = ~torch.eye(20, dtype=torch.bool)
    assert float(contrast(a, b, ignored=mask)) == pytest.approx(0, abs=1e-12)
    silent = torch.cat([torch.ones(10), torch.zeros(10)]).double()
    own = torch.cat([b[:10], torch.randn(10, 6, dtype=torch.float64)])
    assert float(contrast(a, own, weight=silent)) != pytest.approx(float(contrast(a, own)))
    assert float(contrast(a, b, weight=torch.full((20,), 3.0))) == pytest.approx(float(contrast(a, b)), rel=1e-12)
    near = near_frames(2, 10)
    assert near[4, 5:8].all() and not near[4, 4] and not near[4, 8] and not near[9, 10]


def test_patches_are_means_of_windows() -> None:
    values = torch.arange(20.0)[:, None]
    assert patches(values)[:, 0].tolist() == [3.5, 7.5, 11.5, 15.5]


def world(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Audio (C, 32, 10) and motion (C, 32, 12) of one smooth hidden signal of six numbers."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(77)
    hidden = torch.randn(clips, 34, 6, generator=generator).unfold(1, 3, 1).mean(-1)
    return hidden @ torch.randn(6, 10, generator=fixed), hidden @ torch.randn(6, 12, generator=fixed)


def learnt(shuffled: bool) -> tuple[nn.Module, nn.Module]:
    audio, motion = world(8, 0)
    if shuffled:
        motion = motion.flip(0).flip(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = nn.Linear(10, 16), nn.Linear(12, 16)
    optimiser = torch.optim.Adam([p for head in heads for p in head.parameters()], lr=2e-2)
    for _ in range(120):
        loss = embedding_loss(heads[0](audio), heads[1](motion))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return heads


def test_held_out_motion_is_found_by_its_audio_and_not_after_training_on_shuffled_pairs() -> None:
    audio, motion = world(4, 5)
    listener, watcher = learnt(shuffled=False)
    with torch.no_grad():
        a, m = listener(audio), watcher(motion)
    assert retrieval(a.flatten(0, 1), m.flatten(0, 1)) > 0.95
    windows = [torch.cat([patches(clip) for clip in each]) for each in (a, m)]
    assert retrieval(*windows) > 0.95
    assert int(similarity_by_offset(a[0], m[0]).argmax()) == 5
    late = torch.roll(a[0], 3, dims=0)  # audio three frames late: the motion that fits it is three frames earlier
    assert int(similarity_by_offset(late, m[0]).argmax()) == 5 - 3


def test_shuffled_pairs_teach_nothing() -> None:
    audio, motion = world(4, 5)
    listener, watcher = learnt(shuffled=True)
    found = retrieval(listener(audio).flatten(0, 1), watcher(motion).flatten(0, 1))
    assert found < 3 / 128 + 0.02
