import torch
from torch import nn

from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.block_offload import _Streamed, stream_blocks


@torch.inference_mode()
def test_streamed_blocks_compute_the_same_from_weights_that_are_there_as_they_run(
    avatar: AvatarTransformer, given: tuple[torch.Tensor, ...]
) -> None:
    expected = avatar(*given)
    own = [block.attn1.to_q.weight.data_ptr() for block in avatar.dit.blocks]
    stream_blocks(avatar, avatar.dit.blocks, torch.device("cpu"))
    places: list[list[bool]] = []

    def look(*_: object) -> None:
        now = [block.attn1.to_q.weight.data_ptr() for block in avatar.dit.blocks]
        places.append([here == host for here, host in zip(now, own, strict=True)])

    for block in avatar.dit.blocks:
        block.ffn.register_forward_pre_hook(look)
    assert torch.equal(avatar(*given), expected) and torch.equal(avatar(*given), expected)
    # Each block runs on a copy, and no other block does at that moment.
    assert places == 2 * [[other != number for other in range(6)] for number in range(6)]


def test_blocks_stay_on_the_host(avatar: AvatarTransformer) -> None:
    """On device "meta" nothing can be computed, but what was moved shows."""
    stream_blocks(avatar, avatar.dit.blocks, torch.device("meta"))
    places = {name: parameter.device.type for name, parameter in avatar.named_parameters()}
    assert {place for name, place in places.items() if ".blocks." in name} == {"cpu"}
    assert {place for name, place in places.items() if ".blocks." not in name} == {"meta"}


def test_two_blocks_are_there_at_a_time() -> None:
    chain = [_Streamed(nn.Linear(3, 3), torch.device("cpu"), None) for _ in range(3)]
    for here, following in zip(chain, chain[1:] + chain[:1], strict=True):
        here.following = following
    there = []
    for here in chain:
        here.enter()
        there.append([len(each._on_device) for each in chain])
        here.leave()
    assert there == [[2, 2, 0], [0, 2, 2], [2, 0, 2]]
