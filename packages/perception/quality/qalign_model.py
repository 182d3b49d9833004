"""The network behind Q-Align: mPLUG-Owl2 (arXiv 2311.04257) in plain PyTorch, with the key names of one-align.

Image (B, 3, S, S) -> vision model and visual abstractor (B, Q + 1, D) -> modality-adaptive LLaMA (R, D).
Q = learnable queries, D = language width, L = positions of one prompt, R = rows: the positions of all prompts of a
batch, with the words they all begin with once.
Numbers follow the authors' code (`q_align/model`); where it does something unusual a comment says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from perception.quality.qalign_vision import (
    AbstractorConfig,
    VisionConfig,
    VisionModel,
    VisualAbstractor,
    join_heads,
    stack,
    through,
)

Span = tuple[int, int]  # [start, stop) of the image positions among the rows


class QAlignError(UserError, ValueError):
    """A Q-Align folder, or a request to it, that cannot be used; the message says what to change."""


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
        own_fields = _known_fields(OwlConfig, content)
        own_fields["vision"] = VisionConfig(**_known_fields(VisionConfig, visual.get("visual_model", {})))
        own_fields["abstractor"] = AbstractorConfig(
            **_known_fields(AbstractorConfig, visual.get("visual_abstractor", {}))
        )
        return OwlConfig(**own_fields)


def _known_fields(cls: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `content` that `cls` reads; a published file has many more, and None where its default holds."""
    return {item.name: content[item.name] for item in fields(cls) if content.get(item.name) is not None}


@dataclass(frozen=True)
class Rows:
    """How B prompts that begin alike lie in one table of rows: the `before` words of their common beginning once, then
    `image` positions of every image, then the `after` words that end every prompt.

    Nothing before an image sees it, so what all prompts share is computed once.
    """

    before: int
    image: int
    after: int
    batch: int

    @property
    def span(self) -> Span:
        """The rows of image positions."""
        return self.before, self.before + self.batch * self.image

    def positions(self, device: torch.device) -> Tensor:
        """Position of every row in its prompt."""
        start, stop = self.before, self.before + self.image
        parts = torch.arange(stop + self.after, device=device).split([start, self.image, self.after])
        return torch.cat([parts[0], parts[1].repeat(self.batch), parts[2].repeat(self.batch)])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (R, ...) -> the beginning (1, before, ...) and the rest of every prompt (B, image + after, ...)."""
        start, stop = self.span
        parts = x[start:stop].unflatten(0, (self.batch, -1)), x[stop:].unflatten(0, (self.batch, -1))
        return x[None, :start], torch.cat(parts, dim=1)

    def join(self, beginning: Tensor, rest: Tensor) -> Tensor:
        """The rows of what `split` gives."""
        return torch.cat([beginning[0], rest[:, : self.image].flatten(0, 1), rest[:, self.image :].flatten(0, 1)])


class Multiway(nn.Module):
    """Two copies of a layer, the first for text, the second for image positions (mPLUG-Owl2, section 3.2)."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor, image: Span) -> Tensor:
        """Rows (R, D) -> (R, E)."""
        for_text, for_image = self.multiway
        before, inside, after = x[: image[0]], x[image[0] : image[1]], x[image[1] :]
        return torch.cat([for_text(before), for_image(inside), for_text(after)])


class LanguageAttention(nn.Module):
    """Causal attention with rotary positions; keys and values have their own projection for image positions."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.v_proj = Multiway(lambda: nn.Linear(width, width, bias=False))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rows: Rows, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Rows (R, D) -> (R, D); `rotary` tables are those of the rows' positions."""
        turned = (rotate(self._heads(part), rotary) for part in (self.q_proj(x), self.k_proj(x, rows.span)))
        parts = (rows.split(part) for part in (*turned, self._heads(self.v_proj(x, rows.span))))
        (q0, q), (k0, k), (v0, v) = ((a.transpose(1, 2), b.transpose(1, 2)) for a, b in parts)  # (B, H, L, d)
        beginning = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)
        keys, values = (torch.cat([a.expand(rows.batch, -1, -1, -1), b], dim=2) for a, b in ((k0, k), (v0, v)))
        seen = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=x.device).tril(rows.before)
        rest = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        return self.o_proj(rows.join(join_heads(beginning), join_heads(rest)))

    def _heads(self, x: Tensor) -> Tensor:
        """(R, H * d) -> (R, H, d)"""
        return x.unflatten(-1, (self.heads, -1))


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

    def forward(self, x: Tensor, rows: Rows, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Rows (R, D) -> (R, D)."""
        x = x + self.self_attn(self.input_layernorm(x, rows.span), rows, rotary)
        return x + self.mlp(self.post_attention_layernorm(x, rows.span))


def rotary_tables(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of LLaMA's rotary positions (R,), each (R, 1, width): the same for every head."""
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = (positions.float()[:, None] * frequencies).repeat(1, 2)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to rows (R, H, d), halves paired as in the transformers layout of LLaMA."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class OwlModel(nn.Module):
    """Vision model, abstractor and decoder, under the names of `model.*` in the checkpoint."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = stack(lambda: LanguageLayer(config), config.num_hidden_layers)
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

    def next_word_logits(self, before: Tensor, image: Tensor, after: Tensor, words: Tensor | None = None) -> Tensor:
        """Logits of the word that follows: ids (N,), image tokens (B, I, D), ids (M,) -> (B, vocabulary), or
        (B, W) of the `words` (W,) alone."""
        rows = Rows(len(before), image.shape[1], len(after), len(image))
        texts = self.model.embed_tokens(before)[None], self.model.embed_tokens(after).expand(len(image), -1, -1)
        x = rows.join(texts[0], torch.cat([image, texts[1]], dim=1))
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_tables(rows.positions(x.device), head_width, self.config.rope_theta, x.dtype)
        last = rows.split(through(self.model.layers, x, rows, rotary))[1][:, -1]
        weight = self.lm_head.weight if words is None else self.lm_head.weight[words]
        return F.linear(self.model.norm(last), weight)
