"""One process's side of it; what two make together is compared in tests/pipelines/cli/test_generate.py,
and that they take turns in test_sharding.py."""

import pytest
import torch
import torch.distributed as dist

from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.ranks import join_ranks, own_device


@pytest.fixture
def alone() -> None:
    """A group of one process, as of a torchrun call with one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    given = [torch.device(name) for name in ("cuda", "cuda:1", "cpu")]
    assert [str(own_device(device)) for device in given] == ["cuda:3", "cuda:1", "cpu"]


@torch.inference_mode()
def test_a_group_of_one_computes_the_same(
    avatar: AvatarTransformer, given: tuple[torch.Tensor, ...], alone: None
) -> None:
    expected = avatar(*given)
    ranks = join_ranks(torch.device("cpu"))
    avatar.share_sequence(ranks)
    assert ranks.rank == 0 and avatar.dit.ranks is ranks
    assert (avatar(*given) - expected).abs().max() < 1e-5


def test_a_single_process_is_an_error_that_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    # Not destroyed: DeepSpeed keeps the group that an earlier test made, and a later training in this process needs it.
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="torchrun"):
        join_ranks(torch.device("cpu"))
