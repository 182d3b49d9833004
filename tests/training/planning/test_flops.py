"""The formulas against torch's counter on the real modules, and against published counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omniavatar.config import AudioEntry, Recompute, Variant
from omniavatar.model.adapter import inject_lora, mark_trainable
from omniavatar.model.transformer import AvatarTransformer, new_base, to_avatar
from omniavatar.planning.network import Network, network_of
from training.planning.flops import work

DIFFUSERS_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13_824, "num_layers": 40}
DIFFUSERS_1_3B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8_960, "num_layers": 30}
BIG, SMALL = (network_of(config, "lora", 128, "multi") for config in (DIFFUSERS_14B, DIFFUSERS_1_3B))


def meta_model(config: dict[str, int], variant: Variant, entry: AudioEntry) -> AvatarTransformer:
    with torch.device("meta"):
        model = new_base(config)
        if variant != "base":
            to_avatar(model, 10_752, entry=entry)
        if variant == "lora":
            inject_lora(model, 128)
    mark_trainable(model, variant)
    return model.train()


def counted(model: AvatarTransformer, mode: Recompute) -> tuple[int, int]:
    """Forward, and forward with backward, of one sample of 19 latent frames at 480 x 832, by torch's counter."""
    model.set_gradient_checkpointing(mode)
    frames = 19
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inputs = [torch.empty(1, 16, frames, 60, 104), torch.empty(1), torch.empty(1, 512, 4096)]
        if model.has_audio:
            inputs += [torch.empty(1, 17, frames, 60, 104), torch.empty(1, 4 * frames - 3, 10_752)]
        loss = model(*inputs).sum()
        forward = counter.get_total_flops()
        loss.backward()
        return forward, counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "layers", "variant", "entry", "mode"),
    [
        (DIFFUSERS_14B, 3, "lora", "multi", "full"),
        (DIFFUSERS_14B, 6, "lora", "cross_attention", "none"),
        (DIFFUSERS_14B, 3, "full", "single", "full"),
        (DIFFUSERS_1_3B, 3, "frozen_dit", "multi", "none"),
        (DIFFUSERS_1_3B, 3, "base", "multi", "full"),
        (DIFFUSERS_1_3B, 10, "lora", "multi", "none"),
    ],
)
def test_the_formulas_agree_with_a_count_of_the_real_module(
    config: dict[str, int], layers: int, variant: Variant, entry: AudioEntry, mode: Recompute
) -> None:
    cut = config | {"num_layers": layers}
    expected = work(network_of(cut, variant, 128, entry), 29_640, 19, 512, mode)
    forward, executed = counted(meta_model(cut, variant, entry), mode)
    assert forward == pytest.approx(expected.forward, rel=1e-4)
    assert executed == pytest.approx(expected.executed, rel=0.01)


@pytest.mark.parametrize(
    ("network", "tokens", "linear", "attention", "forward", "lora"),
    [
        (SMALL, 29_640, 0.074, 0.162, 0.239, 0.009),
        (SMALL, 32_760, 0.082, 0.198, 0.283, 0.010),
        (BIG, 29_640, 0.711, 0.720, 1.443, 0.030),
        (BIG, 32_760, 0.785, 0.879, 1.678, 0.033),
    ],
)
def test_the_published_forward_counts(
    network: Network, tokens: int, linear: float, attention: float, forward: float, lora: float
) -> None:
    found = work(network, tokens, tokens // 1560)
    assert found.linear / 1e15 == pytest.approx(linear, abs=0.001)
    assert found.self_attention / 1e15 == pytest.approx(attention, abs=0.001)
    assert (found.forward - found.lora) / 1e15 == pytest.approx(forward, rel=0.005)
    assert found.lora / 1e15 == pytest.approx(lora, abs=0.001)


@pytest.mark.parametrize(
    ("network", "tokens", "step", "recomputed", "full"),
    [
        (BIG, 30_000, 3.78, 5.28, 4.41),
        (BIG, 32_760, 4.35, 6.06, 5.03),
        (BIG, 14_040, 1.22, 1.74, 1.52),
        (SMALL, 30_000, 0.68, 0.94, 0.73),
        (SMALL, 14_040, 0.20, 0.27, 0.22),
    ],
)
def test_the_published_step_counts(network: Network, tokens: int, step: float, recomputed: float, full: float) -> None:
    lora = work(network, tokens, tokens // 1560, recompute="full")
    assert lora.step / 1e15 == pytest.approx(step, rel=0.02)
    assert lora.executed / 1e15 == pytest.approx(recomputed, rel=0.02)
    whole = work(replace(network, variant="full"), tokens, tokens // 1560)
    assert whole.step / 1e15 == pytest.approx(full, rel=0.02)


def test_keeping_attention_spares_a_seventh_at_14b() -> None:
    selective, full = (work(BIG, 29_640, 19, recompute=mode).executed for mode in ("selective", "full"))
    assert selective / 1e15 == pytest.approx(4.45, rel=0.01)
    assert 1 - selective / full == pytest.approx(0.14, abs=0.01)


def test_both_layouts_of_a_config_are_one_network() -> None:
    original = {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30, "in_dim": 16, "out_dim": 16}
    assert network_of(original, "lora", 128, "multi") == SMALL
    assert network_of({}, "lora", 128, "multi") == BIG
