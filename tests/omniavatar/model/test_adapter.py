import pytest

from omniavatar.model.adapter import inject_lora, lora_layers, mark_trainable
from omniavatar.model.transformer import AvatarTransformer


def test_only_the_papers_parts_train_with_lora(avatar: AvatarTransformer) -> None:
    inject_lora(avatar, rank=4, alpha=2.0)
    names = mark_trainable(avatar, "lora")
    whole = [name for name in names if "lora_" not in name]
    assert len(names) == 6 * 20 + 2 + 4 + 2 * 2
    assert {name.rsplit(".", 1)[0] for name in whole} == {
        "dit.patch_embedding",
        "audio_proj.proj",
        "audio_proj.norm_out",
        "audio_cond_projs.0",
        "audio_cond_projs.1",
    }
    assert sorted(names) == sorted(name for name, p in avatar.named_parameters() if p.requires_grad)


def test_scaling_is_alpha_over_rank(avatar: AvatarTransformer) -> None:
    inject_lora(avatar, rank=128, alpha=64.0)
    assert {layer.scaling["default"] for layer in lora_layers(avatar)} == {0.5}


def test_frozen_full_and_base(avatar: AvatarTransformer, base: AvatarTransformer) -> None:
    assert len(mark_trainable(avatar, "frozen_dit")) == 2 + 4 + 2 * 2
    assert len(mark_trainable(avatar, "full")) == len(list(avatar.parameters()))
    assert len(mark_trainable(base, "base")) == len(list(base.parameters()))


def test_a_variant_that_does_not_fit_the_model_is_refused(avatar: AvatarTransformer, base: AvatarTransformer) -> None:
    for model, variant in ((avatar, "base"), (avatar, "lora"), (base, "full"), (base, "frozen_dit")):
        with pytest.raises(ValueError, match=f"Variant '{variant}' does not fit a"):
            mark_trainable(model, variant)
    inject_lora(avatar, rank=2, alpha=1.0)
    with pytest.raises(ValueError, match="with LoRA"):
        mark_trainable(avatar, "full")
    with pytest.raises(ValueError, match="already"):
        inject_lora(avatar)
