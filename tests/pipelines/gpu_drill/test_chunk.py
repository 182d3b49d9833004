import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from omniavatar.model.adapter import lora_layers
from omniavatar.model.flow import sigma_schedule
from omniavatar.video.sampler import denoise
from pipelines.gpu_drill.chunk import GUIDANCES, SHIFT, released_step
from pipelines.gpu_drill.device import Device
from pipelines.gpu_drill.drill import Bench
from pipelines.gpu_drill.networks import as_ours, as_released, avatar, chunk_inputs
from pipelines.gpu_drill.report import Report
from pipelines.gpu_drill.sizes import TINY


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Device(), TINY, Report(tmp_path / "gpu.json"), time.monotonic() + 60)


@pytest.mark.parametrize("passes", [2, 3])
def test_both_loops_make_the_same_chunk(bench: Bench, passes: int) -> None:
    model, inputs, guidance = avatar(bench, "14B").float(), chunk_inputs(bench), GUIDANCES[passes]
    assert len(guidance.branches(has_audio=True)) == passes
    as_released(model)
    latents = inputs.noise.clone()
    with torch.inference_mode():
        for now, then in pairwise(sigma_schedule(3, SHIFT).tolist()):
            latents = released_step(model, latents, inputs, guidance, now, then)
    as_ours(model)
    assert all(layer.merged for layer in lora_layers(model))
    ours = denoise(
        model, inputs.noise, inputs.text, inputs.negative, inputs.condition, inputs.audio, inputs.prefix,
        steps=3, shift=SHIFT, guidance=guidance,
    )  # fmt: skip
    torch.testing.assert_close(ours[:, :, 1:], latents[:, :, 1:], rtol=1e-3, atol=1e-3)
    assert (ours - inputs.noise).abs().max() > 1
