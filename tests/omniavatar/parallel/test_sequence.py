"""One rank's side of it; what two ranks compute together is compared in tests/training/engine/test_zero.py."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from omniavatar.model.transformer import AvatarTransformer, TokenSpan, _inject_audio, build_condition
from omniavatar.parallel.sequence import SequenceGroup


@pytest.fixture
def alone() -> SequenceGroup:
    """A group of one rank: everything is exchanged with itself."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return SequenceGroup(dist.new_group([0]))


def of_rank(rank: int, size: int, group: SequenceGroup) -> SequenceGroup:
    group.rank, group.size = rank, size
    return group


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        "latents": torch.randn(2, 16, 3, 6, 6),
        "timestep": torch.tensor([990.0, 500.0]),
        "text": torch.randn(2, 5, 24),
        "condition": build_condition(torch.randn(2, 16, 1, 6, 6), 3, 1),
        "audio": torch.randn(2, 9, 64),
    }


@pytest.mark.parametrize("tokens", [12, 10, 9, 2])
def test_parts_are_the_whole_in_order_and_zeros_behind_it(alone: SequenceGroup, tokens: int) -> None:
    whole = torch.arange(1.0, tokens * 5 + 1).reshape(1, tokens, 5)
    parts = torch.cat([of_rank(rank, 4, alone).part(whole) for rank in range(4)], dim=1)
    assert parts.shape == (1, -(-tokens // 4) * 4, 5)
    assert torch.equal(parts[:, :tokens], whole)
    assert not parts[:, tokens:].any()


def test_what_is_exchanged_comes_back(alone: SequenceGroup) -> None:
    x = torch.randn(2, 6, 4, 8)
    assert torch.equal(alone.heads_for_tokens(x, tokens=6), x)
    assert torch.equal(alone.tokens_for_heads(x), x)
    assert torch.equal(alone.whole(x, tokens=5), x[:, :5])


def test_a_group_of_one_answers_and_learns_as_the_model_does(
    any_avatar: AvatarTransformer, alone: SequenceGroup
) -> None:
    found = []
    for share in (False, True):
        if share:
            any_avatar.share_sequence(alone)
        any_avatar.zero_grad()
        answer = any_avatar(**inputs())
        answer.square().mean().backward()
        found.append([answer.detach(), *(parameter.grad.clone() for parameter in any_avatar.parameters())])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_tokens_of_a_part_hear_their_own_frames(any_avatar: AvatarTransformer, alone: SequenceGroup) -> None:
    """Before any attention has mixed them: the part of every rank against the same tokens of the whole."""
    packed, layers = any_avatar._pack_audio(inputs()["audio"])
    layer, tokens = next(iter(layers.values())), torch.randn(2, 27, 32)
    conditioned = _inject_audio(layer, tokens, packed, TokenSpan(9))
    for size in (2, 4, 5):
        for rank in range(size):
            part = of_rank(rank, size, alone).part(tokens)
            expected = of_rank(rank, size, alone).part(conditioned)
            real = max(0, min(27 - rank * part.shape[1], part.shape[1]))
            found = _inject_audio(layer, part, packed, TokenSpan(9, rank * part.shape[1]))
            assert found.shape == part.shape and found.isfinite().all()
            assert torch.allclose(found[:, :real], expected[:, :real], atol=1e-6)


def test_heads_that_cannot_be_dealt_are_refused(avatar: AvatarTransformer, alone: SequenceGroup) -> None:
    with pytest.raises(ValueError, match="3 ranks cannot share 2 attention heads; expected one of 1, 2"):
        avatar.share_sequence(of_rank(0, 3, alone))
