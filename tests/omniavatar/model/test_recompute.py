from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from omniavatar.config import Recompute
from omniavatar.model.transformer import AvatarTransformer, build_condition

BLOCKS, ATTENTIONS = 6, 12  # each block attends to itself and to the text


class Watch(TorchDispatchMode):
    """Counts the attention kernels that run and the bytes that ops made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = 0
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.attentions += "scaled_dot_product" in func.name() and "backward" not in func.name()
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.made[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return result

    def held(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        "latents": torch.randn(2, 16, 4, 8, 8),
        "timestep": torch.tensor([990.0, 500.0]),
        "text": torch.randn(2, 5, 24),
        "condition": build_condition(torch.randn(2, 16, 1, 8, 8), 4, 1),
        "audio": torch.randn(2, 13, 64),
    }


def gradients(model: AvatarTransformer, mode: Recompute) -> list[Tensor]:
    """Under a mode of ours."""
    model.set_gradient_checkpointing(mode)
    return gradients_as_set(model)


def gradients_as_set(model: AvatarTransformer) -> list[Tensor]:
    """Two forward passes before the backward pass: the audio of a block must belong to its own pass."""
    model.zero_grad()
    first, second = inputs(), inputs()
    second["audio"] = second["audio"].flip(0) * 2
    (model(**first).pow(2).mean() + model(**second).pow(2).mean()).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_no_mode_changes_a_gradient(any_avatar: AvatarTransformer) -> None:
    kept = gradients(any_avatar, "none")
    assert all(gradient.abs().sum() > 0 for gradient in kept)
    for mode in ("full", "selective", "offload"):
        recomputed = gradients(any_avatar, mode)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(kept, recomputed, strict=True))


def test_torchs_reentrant_checkpoint_gives_the_same(avatar: AvatarTransformer) -> None:
    ours = gradients(avatar, "full")
    avatar.dit.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=True))
    reentrant = gradients_as_set(avatar)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, reentrant, strict=True))


@pytest.mark.parametrize("mode", ["selective", "offload"])
def test_gradients_are_the_same_under_autocast(avatar: AvatarTransformer, mode: Recompute) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept, recomputed = gradients(avatar, "none"), gradients(avatar, mode)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, recomputed, strict=True))


def watched(model: AvatarTransformer, mode: Recompute) -> tuple[int, int]:
    """Attention kernels of a training step, and bytes held between its forward and its backward pass."""
    model.set_gradient_checkpointing(mode)
    given = inputs()
    with Watch() as watch:
        loss = model(**given).pow(2).mean()
        held = watch.held()
        loss.backward()
    return watch.attentions, held


def test_selective_computes_no_self_attention_twice_and_lies_between_in_memory(avatar: AvatarTransformer) -> None:
    seen = {mode: watched(avatar, mode) for mode in get_args(Recompute)}
    assert {mode: count for mode, (count, _) in seen.items()} == {
        "none": ATTENTIONS,
        "full": 2 * ATTENTIONS,
        "selective": ATTENTIONS + BLOCKS,  # that to the text, which has few keys
        "offload": 2 * ATTENTIONS,
    }
    held = {mode: size for mode, (_, size) in seen.items()}
    assert held["none"] > 3 * held["selective"] > 3 * held["full"]
    tokens = 2 * 4 * 4 * 4 * 32 * 4  # samples, frames, height, width, dim, bytes
    # What self-attention gave, and its log-sum-exp of two heads for 16 channels each.
    assert held["selective"] - held["full"] == pytest.approx(BLOCKS * tokens * (1 + 1 / 16), rel=0.1)


def test_what_the_audio_layers_attend_to_is_computed_again(any_avatar: AvatarTransformer) -> None:
    once = ATTENTIONS + (2 if any_avatar.audio_entry == "cross_attention" else 0)
    assert watched(any_avatar, "selective")[0] == 2 * once - BLOCKS
    assert watched(any_avatar, "full")[0] == 2 * once


def test_offloading_moves_the_input_of_every_block_and_nothing_else(avatar: AvatarTransformer) -> None:
    avatar.set_gradient_checkpointing("offload")
    moved: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "omniavatar.model.recompute._on_host", lambda tensor: moved.append(tuple(tensor.shape)) or tensor + 0
        )
        avatar(**inputs()).pow(2).mean().backward()
    assert moved == BLOCKS * [(2, 64, 32)]


def test_without_gradients_nothing_is_recomputed(avatar: AvatarTransformer) -> None:
    avatar.set_gradient_checkpointing("full")
    with torch.no_grad(), Watch() as watch:
        avatar(**inputs())
    assert watch.attentions == ATTENTIONS
