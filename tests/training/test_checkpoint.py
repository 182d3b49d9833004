from pathlib import Path

import pytest
from omniavatar.checkpoints import AdapterConfig

from training.checkpoint import adapter_config, check_origin
from training.model import ModelConfig


def test_an_origin_is_recorded_once_and_compared_after(tmp_path: Path) -> None:
    origin = {"optimizer.lr": 1e-3, "optimizer.betas": (0.9, 0.98), "model.base": "abc", "adapter": None}
    check_origin(tmp_path, origin)
    check_origin(tmp_path, origin)
    with pytest.raises(ValueError, match=r"model\.base is xyz, .* were trained with abc; set it back"):
        check_origin(tmp_path, origin | {"model.base": "xyz"})


def test_the_adapter_s_config_says_what_was_trained() -> None:
    config = ModelConfig(variant="frozen_dit", lora_rank=8, lora_alpha=4.0)
    assert adapter_config(config) == AdapterConfig("frozen_dit", 8, 4.0)
