"""The adapter, trained on top of the frozen video model: LoRA, patch embedding and audio modules."""

from typing import TypeVar

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from omniavatar.config import Variant

Model = TypeVar("Model", bound=nn.Module)  # an AvatarTransformer

# Ten linears per block: q, k, v, o of both attentions and the two of the feed-forward (paper section 3.4).
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
# Trained in full beside LoRA: the base model does not have them, or not with these inputs.
_WHOLE = ("dit.patch_embedding.", "audio_proj.", "audio_cond_projs.")


def inject_lora(model: Model, rank: int = 128, alpha: float = 64.0) -> Model:
    """Put LoRA of the given rank on every target, in place; the update is scaled by alpha / rank (0.5) and starts at 0.

    Everything but LoRA stops requiring gradients: call `mark_trainable` next. Raises ValueError for a model with LoRA.
    """
    if lora_layers(model):
        raise ValueError("The model has LoRA layers already; load a fresh base to inject others.")
    # lora_alpha is an int by peft's type and a float in the published config; peft divides, either works.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_TARGETS), lora_dropout=0.0)  # type: ignore
    inject_adapter_in_model(config, model.dit)
    return model


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """All layers with LoRA, in order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_trained(name: str, variant: Variant) -> bool:
    """Whether a parameter, by our name (`dit.blocks...`, `audio_proj...`), is trained in this variant."""
    if variant in ("full", "base"):
        return True
    return name.startswith(_WHOLE) or (variant == "lora" and ".lora_" in name)


def mark_trainable(model: nn.Module, variant: Variant) -> list[str]:
    """Set requires_grad by variant and return the names of the trained parameters.

    "lora": LoRA, patch embedding, audio modules (the paper's). "frozen_dit": the same without LoRA. "full": all weights
    of the avatar model. "base": all weights of the plain text-to-video model. Raises ValueError when the model does not
    have exactly the modules of the variant.
    """
    has_lora = bool(lora_layers(model))
    if model.has_audio == (variant == "base") or has_lora != (variant == "lora"):
        found = f"{'an avatar' if model.has_audio else 'a plain'} model {'with' if has_lora else 'without'} LoRA"
        raise ValueError(f"Variant {variant!r} does not fit {found}; use to_avatar and inject_lora to match it.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, variant))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def merge_lora(model: nn.Module) -> None:
    """Add every LoRA update to the weights it modifies and remove the LoRA: same output, no extra matrix products and
    no memory for it."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
