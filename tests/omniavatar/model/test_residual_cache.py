from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from omniavatar.config import GenerateConfig
from omniavatar.model.residual_cache import (
    POLYNOMIALS,
    Change,
    fit_polynomial,
    measured_changes,
    modulation_changes,
    plan_steps,
    polynomial_of,
)
from omniavatar.model.transformer import AvatarTransformer, build_condition
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import ClipRequest, plan_chunks
from omniavatar.video.sampler import Guidance, denoise
from omniavatar.video.scene import prepare, sample_chunk
from tests.omniavatar.conftest import make_base

AS_IT_IS = (0.0, 0.0, 0.0, 1.0, 0.0)


def test_steps_are_computed_when_the_changes_since_the_last_reach_the_threshold() -> None:
    changes = [0.05, 0.06, 0.02, 0.02, 0.3, 0.01, 0.01]
    assert plan_steps(changes, 0.1, AS_IT_IS) == [True, False, True, False, False, True, False, True]
    assert all(plan_steps(changes, 0.0, AS_IT_IS))
    assert plan_steps(changes, 9.0, AS_IT_IS) == [True, *6 * [False], True]
    assert plan_steps(changes, 0.1, (2.0, 0.0)) == [True, True, True, False, False, True, False, True]


def test_changes_are_those_of_the_modulation(base: AvatarTransformer) -> None:
    seen: list[torch.Tensor] = []
    base.dit.condition_embedder.time_proj.register_forward_hook(lambda _, given, out: seen.append(out))
    noise, text = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 3, 24)
    denoise(base, noise, text, text, None, None, None, 5, 3.0, Guidance(1.0, 1.0))
    expected = [((b - a).abs().sum() / a.abs().sum()).item() for a, b in zip(seen[:-1], seen[1:], strict=True)]
    assert modulation_changes(base, 5, 3.0) == pytest.approx(expected, rel=1e-5)


def test_a_planted_polynomial_is_found_again() -> None:
    planted = (3.0, -2.0, 1.5, 0.4, 0.1)
    changes = [Change(x, float(np.polyval(planted, x))) for x in np.linspace(0.05, 0.4, 12)]
    off = [Change(x, y + sign * 0.01) for x, y in changes for sign in (1, -1)]
    assert fit_polynomial(changes) == pytest.approx(planted, rel=1e-6)
    assert fit_polynomial(off) == pytest.approx(planted, rel=1e-6)
    with pytest.raises(ValueError, match="4 changes .* 6 steps"):
        fit_polynomial(4 * changes[:4])


def test_changes_measured_are_those_of_the_blocks_pass_by_pass(avatar: AvatarTransformer) -> None:
    """Three passes, two of them from the third of six steps on: by hand, with tokens from hooks."""
    torch.manual_seed(0)
    noise, text, negative, audio = (torch.randn(1, *shape) for shape in ((16, 3, 4, 4), (5, 24), (5, 24), (9, 64)))
    given = noise, text, negative, build_condition(torch.randn(1, 16, 1, 4, 4), 3, 1), audio, None, 6, 2.0
    tokens: list[torch.Tensor] = []
    avatar.dit.blocks[0].register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    avatar.dit.blocks[-1].register_forward_hook(lambda _, given, out: tokens.append(out))
    guidance = Guidance(3.0, 2.0, start=0.3)
    with measured_changes(avatar) as changes:
        denoise(avatar, *given, guidance, computed=[True] * 6)
    added = [out - before for before, out in zip(tokens[::2], tokens[1::2], strict=True)]
    passes = {"heard": [added[0], added[1], *added[4::3]], "silent": added[3::3], "negative": added[2::3]}
    expected = [
        ((now - before).abs().mean() / before.abs().mean()).item()
        for residuals in passes.values()
        for before, now in pairwise(residuals)
    ]
    assert sorted(change.residual for change in changes) == pytest.approx(sorted(expected), rel=1e-4)
    foreseen = modulation_changes(avatar, 6, 2.0)
    expected = [*foreseen[:2], *np.repeat(foreseen[2:], 3)]
    assert [change.modulation for change in changes] == pytest.approx(expected, rel=1e-4)
    seen = len(changes)
    denoise(avatar, *given, guidance, computed=[True] * 6)
    assert len(changes) == seen


def test_polynomials_are_known_for_the_two_published_sizes(base: AvatarTransformer) -> None:
    assert set(POLYNOMIALS) == {(30, 1536), (40, 5120)}
    with pytest.raises(ValueError, match="6 blocks of width 32"):
        polynomial_of(base)
    wide = make_base(num_layers=1)
    wide.dit.register_to_config(num_layers=30, num_attention_heads=12, attention_head_dim=128)
    assert polynomial_of(wide)[-1] == pytest.approx(-0.04998757)


def test_every_pass_goes_on_from_what_was_last_computed_for_it(avatar: AvatarTransformer) -> None:
    """Three passes, the two with guidance from the third of four steps on: by hand, with residuals from hooks."""
    torch.manual_seed(0)
    noise, text, negative, audio = (torch.randn(1, *shape) for shape in ((16, 3, 4, 4), (5, 24), (5, 24), (9, 64)))
    given = noise, text, negative, build_condition(torch.randn(1, 16, 1, 4, 4), 3, 1), audio, None, 4, 2.0
    runs: list[int] = []
    avatar.dit.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    guidance = Guidance(3.0, 2.0, start=0.5)
    whole = denoise(avatar, *given, guidance)
    assert len(runs) == 1 + 1 + 3 + 3
    assert torch.equal(denoise(avatar, *given, guidance, computed=[True] * 4), whole)
    runs.clear()
    saved = denoise(avatar, *given, guidance, computed=[True, False, False, True])
    assert len(runs) == 1 + 0 + 2 + 3  # the two new passes have nothing to reuse at step 3
    assert 0 < (saved - whole).abs().mean() < 0.5 * whole.abs().mean()
    batched = denoise(avatar, *given, replace(guidance, batched=True), computed=[True, False, True, True])
    single = denoise(avatar, *given, guidance, computed=[True, False, True, True])
    assert (batched - single).abs().max() < 1e-4


def test_the_threshold_of_the_config_reaches_the_sampler(tiny_models: AvatarModels) -> None:
    config = GenerateConfig(steps=6, shift=2.0, height=32, width=32, text_guidance=1.0, chunk_frames=9)
    request = ClipRequest(np.zeros((32, 32, 3), np.uint8), np.ones(8 * 640, np.float32), "a man")
    scene = prepare(tiny_models, [request], config, 8)
    (chunk,) = plan_chunks(8, 9, 5)
    runs: list[int] = []
    tiny_models.transformer.dit.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    counts = []
    for threshold in (0.0, 1e-9, 1e9):
        runs.clear()
        cached = replace(config, cache_threshold=threshold, cache_polynomial=AS_IT_IS)
        sample_chunk(tiny_models, scene, chunk, scene.reference, [0], cached)
        counts.append(len(runs))
    assert counts == [12, 12, 4]
    with pytest.raises(ValueError, match="cache_polynomial"):
        sample_chunk(tiny_models, scene, chunk, scene.reference, [0], replace(config, cache_threshold=0.1))
