from collections import Counter

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from omniavatar.model.cache import CachedAudio, CachedText, ResidualCache
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
