from collections import Counter

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from omniavatar.model.cache import CachedAudio, CachedText, ResidualCache, pack_text
from omniavatar.model.transformer import AvatarTransformer, build_condition


def inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    condition = build_condition(torch.randn(batch, 16, 1, 4, 4), 3, 1)
    return torch.randn(batch, 16, 3, 4, 4), torch.randn(batch, 5, 24), condition, torch.randn(batch, 9, 64)


@torch.inference_mode()
def test_cached_text_and_audio_change_nothing_and_are_projected_once(any_avatar: AvatarTransformer) -> None:
    latents, text, condition, audio = inputs()
    steps = [torch.tensor([900.0, 900.0]), torch.tensor([200.0, 350.0])]
    expected = [any_avatar(latents, step, text, condition, audio) for step in steps]
    calls: Counter[str] = Counter()
    watched = {"text": any_avatar.dit.blocks[2].attn2.to_k, "sound": any_avatar.audio_proj}
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    kept = CachedText(text), condition, CachedAudio(audio)
    for step, plain in zip(steps, expected, strict=True):
        assert (any_avatar(latents, step, *kept) - plain).abs().max() < 1e-5
    assert calls == {"text": 1, "sound": 1}


@torch.inference_mode()
def test_without_cached_text_attention_is_that_of_diffusers(avatar: AvatarTransformer) -> None:
    latents, text, condition, audio = inputs()
    ours = avatar(latents, torch.tensor([500.0]), text, condition, audio)
    for block in avatar.dit.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    assert torch.equal(avatar(latents, torch.tensor([500.0]), text, condition, audio), ours)


@torch.inference_mode()
def test_a_residual_stands_in_for_the_blocks(avatar: AvatarTransformer) -> None:
    latents, text, condition, audio = inputs()
    runs: list[int] = []
    avatar.dit.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    kept = ResidualCache()
    given = latents, torch.tensor([500.0]), text, condition, audio
    kept.reuse = True  # nothing to reuse yet: it is computed
    first = avatar(*given, kept)
    assert kept.value is not None and len(runs) == 1
    assert (avatar(*given, kept) - first).abs().max() < 1e-5 and len(runs) == 1
    kept.value *= 2
    assert (avatar(*given, kept) - first).abs().max() > 0.01
    kept.reuse = False
    assert torch.equal(avatar(*given, kept), first) and len(runs) == 2


def test_cached_audio_of_another_length_is_refused(avatar: AvatarTransformer) -> None:
    latents, text, condition, audio = inputs()
    with pytest.raises(ValueError, match="5 audio frames; 3 latent frames need 9"):
        avatar(latents, torch.tensor([500.0]), text, condition, CachedAudio(audio[:, :5]))


@pytest.mark.parametrize(("real", "kept"), [(20, 64), (60, 64), (61, 128), (0, 64)])
def test_four_states_weigh_as_much_as_all_padding(real: int, kept: int) -> None:
    states = torch.zeros(2, 512, 24)
    states[0, :real] = torch.randn(real, 24)
    states[1, : real // 2] = 1
    packed = pack_text(states)
    assert packed is not None and packed.states.shape == (2, kept, 24)
    assert torch.equal(packed.bias, packed.bias.bfloat16().float()) and not packed.bias[:-4].any()
    assert packed.bias[-4:].double().exp().sum() == pytest.approx(512 - kept + 4, rel=3e-7)


@pytest.mark.parametrize("real", [512, 500])
def test_a_text_with_little_padding_is_left_alone(real: int) -> None:
    states = torch.zeros(1, 512, 24)
    states[:, :real] = 1
    assert pack_text(states) is None


def test_attention_to_a_packed_text_is_that_to_the_padded_one(avatar: AvatarTransformer) -> None:
    latents, text, condition, audio = inputs()
    padded = torch.cat([text, torch.zeros(2, 251, 24)], dim=1)
    padded[1, 3:] = 0  # two lengths in one batch

    def outputs() -> tuple[torch.Tensor, ...]:
        avatar.zero_grad()
        out = avatar(latents, torch.tensor([500.0]), padded, condition, audio)
        out.pow(2).mean().backward()
        with torch.no_grad():
            cached = avatar(latents, torch.tensor([500.0]), CachedText(padded), condition, CachedAudio(audio))
        return out.detach(), cached, *(parameter.grad for parameter in avatar.parameters())

    expected = outputs()
    avatar.dit.packs_text = True
    seen: list[int] = []
    avatar.dit.blocks[1].attn2.to_k.register_forward_hook(lambda _, __, keys: seen.append(keys.shape[1]))
    for ours, theirs in zip(outputs(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert seen == [64, 64]
