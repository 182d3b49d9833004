"""Numbers of weights against the real modules and against the published ones."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from omniavatar.config import AudioEntry, Variant
from omniavatar.model.adapter import inject_lora, mark_trainable
from omniavatar.model.transformer import new_base, to_avatar
from omniavatar.planning.network import Parameters, network_of, parameters

BIG = network_of({}, "lora", 128, "multi")
SHAPE = {"num_attention_heads": 2, "attention_head_dim": 48, "ffn_dim": 256, "num_layers": 4, "text_dim": 16}
RANK, AUDIO = 8, 12


@pytest.mark.parametrize("entry", get_args(AudioEntry))
@pytest.mark.parametrize("variant", get_args(Variant))
def test_parameters_are_those_of_the_real_module(variant: Variant, entry: AudioEntry) -> None:
    with torch.device("meta"):
        model = new_base(SHAPE)
        if variant != "base":
            to_avatar(model, AUDIO, entry=entry)
        if variant == "lora":
            inject_lora(model, RANK)
    mark_trainable(model, variant)
    kept = set(model.dit._keep_in_fp32_modules or ())
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    expected = Parameters(
        frozen=sum(p.numel() for _, p in frozen),
        frozen_fp32=sum(p.numel() for name, p in frozen if kept & set(name.split("."))),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    assert parameters(network_of(SHAPE, variant, RANK, entry, AUDIO)) == expected


def test_published_parameters() -> None:
    assert parameters(replace(BIG, variant="base")).trained == 14_288_491_584
    small = {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    assert parameters(network_of(small, "base", 0, "multi")).trained == 1_418_996_800
    without_lora = parameters(replace(BIG, variant="frozen_dit")).trained
    assert parameters(BIG).trained - without_lora == 613_416_960
