"""Packed weights: rounding within half a step, the promised size, and scores that stay."""

import numpy as np
import pytest
import torch

from miniature.weights import weights_dir
from miniature.world.clips import draw_clip
from perception.qalign_bits import PackedLinear
from perception.quality.qalign import load_qalign


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7)])
def test_weights_are_rounded_by_at_most_half_a_step(bits, levels):
    torch.manual_seed(0)
    weight = torch.randn(12, 200)
    packed = PackedLinear(weight, bits)
    for columns in (slice(0, 128), slice(128, 200)):
        step = weight[:, columns].abs().amax(1, keepdim=True) / levels
        assert ((packed.weight - weight)[:, columns].abs() <= 0.5001 * step).all()
    x = torch.randn(3, 200)
    torch.testing.assert_close(packed(x), x @ packed.weight.T)


def test_sizes_are_a_half_and_a_quarter_of_sixteen_bits():
    weight = torch.randn(256, 1024, dtype=torch.float16)
    sizes = [sum(b.numel() * b.element_size() for b in PackedLinear(weight, bits).buffers()) for bits in (8, 4)]
    np.testing.assert_allclose(np.array(sizes) / (2 * weight.numel()), [0.5, 0.25], rtol=0.04)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.03), (4, 0.4)])
def test_scores_stay_close_to_the_full_model(bits, tolerance):
    images = [draw_clip(seed, 0.04).frames[0] for seed in range(6)]
    full = load_qalign(weights_dir() / "one-align").score(images)
    small = load_qalign(weights_dir() / "one-align", bits=bits)
    assert isinstance(small.model.model.layers[0].self_attn.k_proj.multiway[1], PackedLinear)
    np.testing.assert_allclose(small.score(images), full, atol=tolerance)
