from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omniavatar.model.flow import euler_step, sigma_schedule
from omniavatar.model.transformer import AvatarTransformer, build_condition
from omniavatar.video.sampler import Guidance, denoise


def inputs(batch: int) -> dict[str, Tensor]:
    torch.manual_seed(9)
    reference = torch.randn(batch, 16, 1, 4, 4)
    return {
        "noise": torch.randn(batch, 16, 4, 4, 4),
        "text": torch.randn(batch, 5, 24),
        "negative_text": torch.randn(batch, 5, 24),
        "condition": build_condition(reference, 4, 2),
        "audio": torch.randn(batch, 13, 64),
        "prefix": torch.randn(batch, 16, 2, 4, 4),
    }


@pytest.mark.parametrize(
    ("guidance", "weights"),
    [
        (Guidance(4.5, 4.5), [(-3.5, False, False), (4.5, True, True)]),
        (Guidance(4.5, 3.0), [(-3.5, False, False), (1.5, True, False), (3.0, True, True)]),
        (Guidance(1.0, 3.0), [(-2.0, True, False), (3.0, True, True)]),
        (Guidance(1.0, 1.0), [(1.0, True, True)]),
        (Guidance(5.0, 0.0), [(-4.0, False, False), (5.0, True, False)]),
    ],
)
def test_branches_are_those_that_count(guidance: Guidance, weights: list[tuple[float, bool, bool]]) -> None:
    assert guidance.branches(has_audio=True) == weights


def test_without_audio_only_the_text_guides() -> None:
    assert Guidance(4.5, 3.0).branches(has_audio=False) == [(-3.5, False, False), (4.5, True, False)]
    assert Guidance(1.0, 3.0).branches(has_audio=False) == [(1.0, True, False)]


def test_guidance_is_for_a_part_of_the_steps() -> None:
    guidance = Guidance(4.5, 3.0, start=0.25, stop=0.75)
    counts = [len(guidance.branches(True, step / 8)) for step in range(8)]
    assert counts == [1, 1, 3, 3, 3, 3, 1, 1]
    assert guidance.branches(True, 0.0) == [(1.0, True, True)] and guidance.branches(False, 0.0) == [(1.0, True, False)]


@pytest.mark.parametrize("guidance", [Guidance(4.0, 2.5), Guidance(3.0, 3.0), Guidance(4.0, 2.5, stop=0.5)])
def test_branches_in_one_batch_give_the_same(avatar: AvatarTransformer, guidance: Guidance) -> None:
    calls: list[int] = []
    avatar.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    settings = {"steps": 4, "shift": 2.0}
    one_by_one = denoise(avatar, **inputs(2), **settings, guidance=guidance)
    calls.clear()
    together = denoise(avatar, **inputs(2), **settings, guidance=replace(guidance, batched=True))
    assert (together - one_by_one).abs().max() < 1e-5
    assert calls == [2 * len(guidance.branches(True, step / 4)) for step in range(4)]


def test_silent_audio_needs_no_branch_of_its_own(avatar: AvatarTransformer) -> None:
    calls: list[int] = []
    avatar.register_forward_pre_hook(lambda *_: calls.append(1))
    silent = inputs(1)
    silent["audio"] = torch.zeros_like(silent["audio"])
    settings = {"steps": 2, "shift": 2.0}
    first = denoise(avatar, **silent, **settings, guidance=Guidance(2.0, 5.0))
    assert len(calls) == 4
    assert torch.equal(denoise(avatar, **silent, **settings, guidance=Guidance(2.0, 1.0)), first)


@torch.no_grad()
def test_three_branches_follow_the_published_formula(avatar: AvatarTransformer) -> None:
    given = inputs(1)
    x, zero = given["noise"].clone(), torch.zeros_like(given["audio"])
    sigmas = sigma_schedule(3, 5.0)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        x[:, :, :2] = given["prefix"]
        t = 1000 * now[None]
        a = avatar(x, t, given["negative_text"], given["condition"], zero)
        b = avatar(x, t, given["text"], given["condition"], zero)
        c = avatar(x, t, given["text"], given["condition"], given["audio"])
        x = euler_step(x, a + 4 * (b - a) + 2.5 * (c - b), now, then)
    x[:, :, :2] = given["prefix"]
    assert (denoise(avatar, **given, steps=3, shift=5.0, guidance=Guidance(4.0, 2.5)) - x).abs().max() < 1e-4


@pytest.mark.parametrize("guidance", [Guidance(3.0, 3.0), Guidance(2.0, 3.0)])
def test_a_batch_of_three_equals_three_singles(avatar: AvatarTransformer, guidance: Guidance) -> None:
    given = inputs(3)
    settings = {"steps": 3, "shift": 2.0, "guidance": guidance}
    together = denoise(avatar, **given, **settings)
    for index in range(3):
        alone = denoise(avatar, **{name: x[index : index + 1] for name, x in given.items()}, **settings)
        assert (together[index] - alone[0]).abs().max() < 1e-5


def test_the_prefix_comes_back_untouched_and_hides_the_noise_under_it(avatar: AvatarTransformer) -> None:
    given = inputs(1)
    settings = {"steps": 2, "shift": 2.0, "guidance": Guidance(2.0, 2.0)}
    latents = denoise(avatar, **given, **settings)
    assert torch.equal(latents[:, :, :2], given["prefix"])
    given["noise"][:, :, :2] = 100.0
    assert torch.equal(denoise(avatar, **given, **settings), latents)
    given["noise"][:, :, 2:] += 0.1
    assert not torch.equal(denoise(avatar, **given, **settings), latents)


def test_the_plain_base_is_sampled_without_image_and_audio(base: AvatarTransformer) -> None:
    given = inputs(2) | {"condition": None, "audio": None, "prefix": None}
    steps = []
    out = denoise(base, **given, steps=4, shift=5.0, guidance=Guidance(), on_step=lambda: steps.append(1))
    assert out.shape == (2, 16, 4, 4, 4) and out.isfinite().all() and len(steps) == 4


def test_the_network_sees_a_thousand_sigma(avatar: AvatarTransformer) -> None:
    seen: list[float] = []
    avatar.register_forward_pre_hook(lambda _, args: seen.append(args[1][0].item()))
    denoise(avatar, **inputs(1), steps=4, shift=5.0, guidance=Guidance(1.0, 1.0))
    assert seen == pytest.approx((1000 * sigma_schedule(4, 5.0)[:-1]).tolist())
