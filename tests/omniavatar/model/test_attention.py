import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from omniavatar.model.attention import NATIVE, choose_attention
from omniavatar.model.transformer import AvatarTransformer


@torch.no_grad()
def output(model: AvatarTransformer) -> Tensor:
    torch.manual_seed(2)
    return model(torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 4, 24))


def kernels(model: AvatarTransformer) -> set[AttentionBackendName | None]:
    attentions = [attention for block in model.dit.blocks for attention in (block.attn1, block.attn2)]
    return {attention.processor._attention_backend for attention in attentions}


@pytest.mark.parametrize("name", ["auto", "native"])
def test_on_a_cpu_it_is_torchs_own(base: AvatarTransformer, name: str) -> None:
    before = output(base)
    assert choose_attention(base, name) == NATIVE
    assert torch.equal(output(base), before)


def test_a_kernel_asked_for_by_name_is_used_by_this_model_alone(
    base: AvatarTransformer, other_base: AvatarTransformer
) -> None:
    expected = output(base)
    assert choose_attention(base, "_native_math") == "_native_math"
    assert kernels(base) == {AttentionBackendName._NATIVE_MATH}
    assert torch.allclose(output(base), expected, atol=1e-5)
    assert _AttentionBackendRegistry.get_active_backend()[0] == NATIVE
    assert kernels(other_base) == {None}
    assert choose_attention(base) == NATIVE
    assert torch.equal(output(base), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sage", "install `sageattention>="),
        ("flash", "install `flash-attn>="),
        ("_flash_3", "build FA3"),
        ("_native_cudnn", "No viable backend"),  # torch has it, a CPU has not
        ("flesh", "expected one of flash, "),
        ("flash_hub", "expected one of flash, "),  # would be fetched, and run, from a hub
    ],
)
def test_what_cannot_run_here_is_refused_before_any_work(base: AvatarTransformer, name: str, reason: str) -> None:
    base.requires_grad_(False)
    with pytest.raises(ValueError, match=f"Attention '{name}' cannot be used: .*{reason}"):
        choose_attention(base, name)
    assert kernels(base) == {None}


def test_a_model_in_training_keeps_to_kernels_with_a_backward_pass(base: AvatarTransformer) -> None:
    with pytest.raises(ValueError, match="'flash' cannot be used: the model has weights to train"):
        choose_attention(base, "flash")
