"""The network behind Q-Align: mPLUG-Owl2 (arXiv 2311.04257) in plain PyTorch, with the key names of one-align.

Image (B, 3, S, S) -> vision model (B, P, V) -> visual abstractor (B, Q + 1, D) -> modality-adaptive LLaMA (B, L, D).
P = patches + class token, V = vision width, Q = learnable queries, D = language width, L = text and image positions.
Numbers follow the authors' code (`q_align/model`); where it does something unusual a comment says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Span = tuple[int, int]  # [start, stop) of the image positions in a sequence


class QAlignError(ValueError):
    """A Q-Align folder, or a request to it, that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class VisionConfig:
    """`visual_config.visual_model` of the published config.json; the defaults are ViT-L/14 at 448 px."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class AbstractorConfig:
    """`visual_config.visual_abstractor`; `grid_size` is the side of the patch grid."""

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_learnable_queries: int = 64
    grid_size: int = 32
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class OwlConfig:
    """Top level of config.json (LLaMA-2 7B by default)."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    bos_token_id: int = 1
    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "OwlConfig":
        """Configuration from a parsed config.json. QAlignError for LLaMA options this network does not have."""
        heads = content.get("num_attention_heads", OwlConfig.num_attention_heads)
        published = {"hidden_act": "silu", "rope_scaling": None, "attention_bias": False, "num_key_value_heads": heads}
        for key, only in published.items():
            if content.get(key, only) != only:
                raise QAlignError(
                    f"config.json has {key} = {content[key]!r}; only {only!r} is supported by Q-Align here"
                )
        visual = content.get("visual_config") or {}
        known = _known_fields(OwlConfig, content)
        known["vision"] = VisionConfig(**_known_fields(VisionConfig, visual.get("visual_model", {})))
        known["abstractor"] = AbstractorConfig(**_known_fields(AbstractorConfig, visual.get("visual_abstractor", {})))
        return OwlConfig(**known)


def _known_fields(cls: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `content` that `cls` reads; a published file has many more, and None where its default holds."""
    return {item.name: content[item.name] for item in fields(cls) if content.get(item.name) is not None}


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H * d) -> (B, H, L, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H * d)"""
    return x.transpose(1, 2).flatten(2)


# ---- vision model -------------------------------------------------------------------------------------------------


class VisionEmbeddings(nn.Module):
    """Patches and class token with learnt positions, normalised: (B, 3, S, S) -> (B, P, V)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        patches = (config.image_size // patch) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        classes = self.cls_token.expand(len(pixels), -1, -1)
        return self.pre_layernorm(torch.cat([classes, patches], dim=1) + self.position_embedding)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # the published rows are ordered head, then query/key/value: not three blocks of all heads
        mixed = self.query_key_value(x).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.dense(_join_heads(F.scaled_dot_product_attention(*mixed.unbind(0))))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # QuickGELU of CLIP


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionModel(nn.Module):
    """CLIP's vision transformer, all tokens normalised at the end: (B, 3, S, S) -> (B, P, V)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = nn.ModuleDict({"layers": _stack(lambda: VisionLayer(config), config.num_hidden_layers)})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.post_layernorm(_through(self.encoder["layers"], self.embeddings(pixels)))


# ---- visual abstractor ----------------------------------------------------------------------------------------------


class AbstractorAttention(nn.Module):
    """Learnable queries attend to themselves and to the image; the position tables are stored in the checkpoint."""

    q_pos_embed: Tensor
    k_pos_embed: Tensor

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        queries = torch.arange(config.num_learnable_queries, dtype=torch.float64)
        self.register_buffer("q_pos_embed", sine_positions(queries, width).float())
        self.register_buffer("k_pos_embed", grid_positions(config.grid_size, width).float())

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        keys = torch.cat([queries, image], dim=1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        q = _split_heads(self.query(queries + self.q_pos_embed), self.heads)
        k, v = _split_heads(self.key(keys + positions), self.heads), _split_heads(self.value(keys), self.heads)
        return _join_heads(F.scaled_dot_product_attention(q, k, v))


class AbstractorMLP(nn.Module):
    """Gated SiLU with a norm inside."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_ln = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(x)) * self.w3(x)))


class AbstractorOutput(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = AbstractorMLP(config)

    def forward(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = residual + self.out_proj(attended)
        return x + self.mlp(self.norm2(x))


class AbstractorCrossAttention(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)  # these three norms keep PyTorch's default epsilon
        self.normk = nn.LayerNorm(config.hidden_size)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        queries = self.norm1(queries)  # the residual starts from the *normalised* queries
        return self.output(self.attention(queries, self.normk(image)), queries)


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = AbstractorCrossAttention(config)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        return self.crossattention(queries, image)


class VisualAbstractor(nn.Module):
    """Q learnable queries read the image, in the language width, with an end token: (B, P, V) -> (B, Q + 1, D)."""

    def __init__(self, config: AbstractorConfig, language_width: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": _stack(lambda: AbstractorLayer(config), config.num_hidden_layers)})
        self.visual_fc = nn.Linear(config.hidden_size, language_width)
        self.query_embeds = nn.Parameter(torch.zeros(1, config.num_learnable_queries, config.hidden_size))
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, language_width))

    def forward(self, image: Tensor) -> Tensor:
        queries = _through(self.encoder["layers"], self.query_embeds.expand(len(image), -1, -1), image)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(len(image), -1, -1)], dim=1)


def sine_positions(positions: Tensor, width: int) -> Tensor:
    """Sine half then cosine half over frequencies 10000^(-2i / width): (N,) -> (N, width)."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_positions(side: int, width: int) -> Tensor:
    """Zeros for the class token, then per patch, row by row, a column half and a row half: (side^2 + 1, width)."""
    steps = torch.arange(side)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    halves = [sine_positions(axis.flatten(), width // 2) for axis in (columns, rows)]
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.cat(halves, dim=1)])


# ---- language model -------------------------------------------------------------------------------------------------


class Multiway(nn.Module):
    """Modality-adaptive layer: one copy for text positions, one for image positions (paper, section 3.2)."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor, image: Span) -> Tensor:
        for_text, for_image = self.multiway
        before, inside, after = x[:, : image[0]], x[:, image[0] : image[1]], x[:, image[1] :]
        return torch.cat([for_text(before), for_image(inside), for_text(after)], dim=1)


class LanguageAttention(nn.Module):
    """Causal attention with rotary positions; keys and values have their own projection for image positions."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.v_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, image: Span, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q = rotate(_split_heads(self.q_proj(x), self.heads), rotary)
        k = rotate(_split_heads(self.k_proj(x, image), self.heads), rotary)
        v = _split_heads(self.v_proj(x, image), self.heads)
        return self.o_proj(_join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class LanguageMLP(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LanguageLayer(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.self_attn = LanguageAttention(config)
        self.mlp = LanguageMLP(config)
        self.input_layernorm = Multiway(lambda: nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.post_attention_layernorm = Multiway(lambda: nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, x: Tensor, image: Span, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x, image), image, rotary)
        return x + self.mlp(self.post_attention_layernorm(x, image))


def rotary_tables(length: int, width: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of LLaMA's rotary positions 0 .. length - 1, each (length, width), device and dtype of `like`."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width)
    angles = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to (B, H, L, d), halves paired as in the transformers layout of LLaMA."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


# ---- whole ----------------------------------------------------------------------------------------------------------


class OwlModel(nn.Module):
    """Vision model, abstractor and decoder, under the names of `model.*` in the checkpoint."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = _stack(lambda: LanguageLayer(config), config.num_hidden_layers)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.vision_model = VisionModel(config.vision)
        self.visual_abstractor = VisualAbstractor(config.abstractor, config.hidden_size)


class Owl(nn.Module):
    """mPLUG-Owl2 with its language head; `state_dict()` has exactly the names of the published files."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.config = config
        self.model = OwlModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> image tokens (B, Q + 1, D)."""
        return self.model.visual_abstractor(self.model.vision_model(pixels))

    def next_word_logits(self, before: Tensor, image: Tensor, after: Tensor) -> Tensor:
        """Logits of the word that follows: ids (N,), image tokens (B, I, D), ids (M,) -> (B, vocabulary)."""
        start, stop = len(before), len(before) + image.shape[1]
        texts = [self.model.embed_tokens(ids).expand(len(image), -1, -1) for ids in (before, after)]
        x = torch.cat([texts[0], image, texts[1]], dim=1)
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_tables(x.shape[1], head_width, self.config.rope_theta, like=x)
        x = _through(self.model.layers, x, (start, stop), rotary)
        return self.lm_head(self.model.norm(x[:, -1]))


def _stack(make: Callable[[], nn.Module], count: int) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(count))


def _through(layers: nn.Module, x: Tensor, *context: Any) -> Tensor:
    for layer in layers.children():
        x = layer(x, *context)
    return x
