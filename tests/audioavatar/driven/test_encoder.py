"""E_X: particles in any order and number, regions apart; traits follow from place and label."""

import pytest
import torch
from torch import Tensor

from audioavatar.driven.encoder import AudioEmbedding, ParticleEncoder, Traits
from audioavatar.particles import Part


@pytest.fixture
def cloud() -> tuple[Tensor, Tensor, Tensor]:
    """Places (600, 3), parts of body and face, and a smooth motion (3, 600, 4) of them."""
    generator = torch.Generator().manual_seed(1)
    place = torch.rand(600, 3, generator=generator)
    mixing = torch.randn(3, 4, generator=generator)
    offset = torch.stack([scale * (place @ mixing) for scale in (0.5, 1.0, -1.0)])
    part = torch.where(torch.rand(600, generator=generator) < 0.5, int(Part.BODY), int(Part.UPPER_LIP))
    return place, part, offset


def test_particles_may_come_in_any_order_and_number(cloud: tuple[Tensor, Tensor, Tensor]) -> None:
    place, part, offset = cloud
    encoder = ParticleEncoder(4)
    whole = encoder(place, part, offset)
    assert whole.shape == (3, 3 * 64)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(encoder(place[order], part[order], offset[:, order]), whole, atol=1e-5)
    few = order[:200]
    fewer = encoder(place[few], part[few], offset[:, few])
    for region in (slice(0, 64), slice(64, 128)):
        assert torch.cosine_similarity(fewer[:, region], whole[:, region]).min().item() > 0.95


def test_regions_do_not_see_each_other_and_absent_ones_are_zero(cloud: tuple[Tensor, Tensor, Tensor]) -> None:
    place, part, offset = cloud
    encoder = ParticleEncoder(4)
    before = encoder(place, part, offset)
    moved = offset + 1.0 * (part == Part.UPPER_LIP)[:, None]
    after = encoder(place, part, moved)
    assert torch.equal(after[:, :64], before[:, :64]) and not torch.equal(after[:, 64:128], before[:, 64:128])
    assert not before[:, 128:].any()  # it has no hands


def test_traits_are_of_place_and_label_alone() -> None:
    traits, place = Traits(), torch.rand(5, 3)
    lip, body = torch.full((5,), int(Part.UPPER_LIP)), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(traits(place[:2], lip[:2]), traits(place, lip)[:2])
    assert not torch.equal(traits(place, lip), traits(place, body))


def test_the_audio_of_a_frame_is_seen_from_four_before_to_four_after() -> None:
    net, features = AudioEmbedding(6, 16, 8), torch.randn(1, 20, 6)
    other = features.clone()
    other[:, 10] += torch.randn(6)
    changed = (net(features) - net(other)).abs().sum(-1)[0] > 0
    assert changed.nonzero()[:, 0].tolist() == list(range(6, 15))
