"""Ours against diffusers' own model, and against a second writing of the published forward pass, from its description
alone and with its tensor names."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional

from omniavatar.model.adapter import inject_lora, lora_layers, merge_lora
from omniavatar.model.transformer import AvatarTransformer, TimestepSinusoid, build_condition
from omniavatar.weights.checkpoints import to_official_name

HEADS, HEAD_DIM, FREQ = 2, 16, 32
Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """A linear layer with its LoRA, alpha / rank = 0.5, when the weights hold one."""
    y = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    if f"{name}.lora_A.default.weight" in w:
        y = y + 0.5 * (x @ w[f"{name}.lora_A.default.weight"].T) @ w[f"{name}.lora_B.default.weight"].T
    return y


def rms(w: Weights, name: str, x: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * w[f"{name}.weight"]


def layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def rotate(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """3D RoPE as complex numbers: (B, S, heads, 16), 6 channels for time, then 2 x 5 rounded to pairs -> 8, 4, 4."""
    parts = (HEAD_DIM - 2 * (2 * (HEAD_DIM // 6)), 2 * (HEAD_DIM // 6), 2 * (HEAD_DIM // 6))
    axes = torch.meshgrid(*[torch.arange(size) for size in grid], indexing="ij")
    angles = [
        axis.reshape(-1, 1).double() * 10000 ** -(torch.arange(0, dim, 2).double() / dim)
        for axis, dim in zip(axes, parts, strict=True)
    ]
    turn = torch.polar(torch.ones_like(torch.cat(angles, 1)), torch.cat(angles, 1))[:, None]
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn
    return torch.view_as_real(turned).flatten(-2).float()


def attention(w: Weights, name: str, x: Tensor, context: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
    query = rms(w, f"{name}.norm_q", linear(w, f"{name}.q", x)).unflatten(-1, (HEADS, HEAD_DIM))
    key = rms(w, f"{name}.norm_k", linear(w, f"{name}.k", context)).unflatten(-1, (HEADS, HEAD_DIM))
    value = linear(w, f"{name}.v", context).unflatten(-1, (HEADS, HEAD_DIM))
    if grid is not None:
        query, key = rotate(query, grid), rotate(key, grid)
    weights = torch.einsum("bshd,bthd->bhst", query, key).div(HEAD_DIM**0.5).softmax(-1)
    return linear(w, f"{name}.o", torch.einsum("bhst,bthd->bshd", weights, value).flatten(2))


def block(w: Weights, name: str, x: Tensor, text: Tensor, modulation: Tensor, grid: tuple[int, int, int]) -> Tensor:
    table = w[f"{name}.modulation"] + modulation
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
    normed = layer_norm(x) * (1 + scale) + shift
    x = x + gate * attention(w, f"{name}.self_attn", normed, normed, grid)
    affine = layer_norm(x) * w[f"{name}.norm3.weight"] + w[f"{name}.norm3.bias"]
    x = x + attention(w, f"{name}.cross_attn", affine, text, None)
    inner = functional.gelu(linear(w, f"{name}.ffn.0", layer_norm(x) * (1 + scale_mlp) + shift_mlp), approximate="tanh")
    return x + gate_mlp * linear(w, f"{name}.ffn.2", inner)


def pack(w: Weights, audio: Tensor) -> Tensor:
    padded = torch.cat([audio[:, :1], audio[:, :1], audio[:, :1], audio], dim=1)
    rows = [padded[:, start : start + 4].reshape(len(audio), -1) for start in range(0, padded.shape[1], 4)]
    packed = linear(w, "audio_proj.proj", torch.stack(rows, dim=1))
    return functional.layer_norm(packed, (32,), w["audio_proj.norm_out.weight"], w["audio_proj.norm_out.bias"], 1e-5)


def official(w: Weights, x: Tensor, t: Tensor, text: Tensor, audio: Tensor | None, layers: int = 6) -> Tensor:
    """The published order of operations on one sample or several: x is the 33-channel (or 16-channel) input."""
    grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
    angle = t.double()[:, None] * 10000 ** -(torch.arange(FREQ // 2).double() / (FREQ // 2))
    wave = torch.cat([angle.cos(), angle.sin()], dim=1).float()
    time = linear(w, "time_embedding.2", functional.silu(linear(w, "time_embedding.0", wave)))
    modulation = linear(w, "time_projection.1", functional.silu(time)).unflatten(1, (6, -1))
    words = linear(w, "text_embedding.0", text)
    words = linear(w, "text_embedding.2", functional.gelu(words, approximate="tanh"))
    h = functional.conv3d(x, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=(1, 2, 2))
    h = h.flatten(2).transpose(1, 2)
    packed = pack(w, audio) if audio is not None else None
    for layer in range(layers):
        if packed is not None and 1 < layer <= layers // 2:
            conditioned = linear(w, f"audio_cond_projs.{layer - 2}", packed)
            h = h + conditioned.repeat_interleave(grid[1] * grid[2], dim=1)
        h = block(w, f"blocks.{layer}", h, words, modulation, grid)
    shift, scale = (w["head.modulation"] + time[:, None]).chunk(2, dim=1)
    h = linear(w, "head.head", layer_norm(h) * (1 + scale) + shift)
    h = h.reshape(len(x), *grid, 1, 2, 2, 16)
    return torch.einsum("bfhwpqrc->bcfphqwr", h).reshape(len(x), 16, grid[0], grid[1] * 2, grid[2] * 2)


def weights_of(model: AvatarTransformer) -> Weights:
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    return {to_official_name(name): value for name, value in state.items()}


def inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(11)
    latents, reference = torch.randn(batch, 16, 3, 4, 6), torch.randn(batch, 16, 1, 4, 6)
    timestep = torch.tensor([991.7, 333.3, 20.0])[:batch]
    condition = build_condition(reference, 3, torch.tensor([1, 2, 1])[:batch])
    return latents, timestep, torch.randn(batch, 7, 24), condition, torch.randn(batch, 9, 64)


@torch.no_grad()
def test_plain_base_equals_the_published_order(base: AvatarTransformer) -> None:
    latents, timestep, text, _, _ = inputs(3)
    expected = official(weights_of(base), latents, timestep, text, None)
    assert expected.std() > 0.1
    assert (base(latents, timestep, text) - expected).abs().max() < 1e-5


def stock(model: AvatarTransformer) -> WanTransformer3DModel:
    """diffusers' class with the same weights, unchanged but for the timestep's sinusoid, which it takes in float32."""
    theirs = WanTransformer3DModel.from_config(model.dit.config)
    theirs.load_state_dict(model.dit.state_dict())
    theirs.condition_embedder.timesteps_proj = TimestepSinusoid(FREQ)
    return theirs.eval()


@pytest.mark.parametrize("timestep", [1000.0, 991.74, 982.91, 0.5])
def test_the_timestep_is_embedded_in_float64(timestep: float) -> None:
    """The published models' embedding of 256 channels; an angle rounded to float32 is off by up to 3e-5."""
    exact = [math.cos(timestep * 10000 ** (-k / 128)) for k in range(128)]
    exact += [math.sin(timestep * 10000 ** (-k / 128)) for k in range(128)]
    embedded = TimestepSinusoid(256)(torch.tensor([timestep], dtype=torch.float64))[0]
    assert (embedded - torch.tensor(exact)).abs().max() < 1e-7


@torch.no_grad()
def test_plain_base_equals_diffusers(base: AvatarTransformer) -> None:
    latents, timestep, text, _, _ = inputs(3)
    assert torch.equal(base(latents, timestep, text), stock(base)(latents, timestep, text, return_dict=False)[0])


@torch.no_grad()
def test_audio_equals_diffusers_with_vectors_added_before_blocks(avatar: AvatarTransformer) -> None:
    latents, timestep, text, condition, audio = inputs(3)
    theirs, weights = stock(avatar), weights_of(avatar)
    packed, tokens_of_frame = pack(weights, audio), 2 * 3
    for block in (2, 3):  # of six
        vectors = linear(weights, f"audio_cond_projs.{block - 2}", packed).repeat_interleave(tokens_of_frame, dim=1)
        theirs.blocks[block].register_forward_pre_hook(lambda _, given, added=vectors: (given[0] + added, *given[1:]))
    expected = theirs(torch.cat([latents, condition], dim=1), timestep, text, return_dict=False)[0]
    assert (avatar(latents, timestep, text, condition, audio) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_audio_equals_the_published_order_and_matters(avatar: AvatarTransformer) -> None:
    latents, timestep, text, condition, audio = inputs(3)
    joined, weights = torch.cat([latents, condition], dim=1), weights_of(avatar)
    silent, conditioned = (
        official(weights, joined, timestep, text, None),
        official(weights, joined, timestep, text, audio),
    )
    assert (silent - conditioned).abs().max() > 0.1
    assert (avatar(latents, timestep, text, condition) - silent).abs().max() < 1e-5
    assert (avatar(latents, timestep, text, condition, audio) - conditioned).abs().max() < 1e-5


@torch.no_grad()
def test_zero_audio_is_not_no_audio(avatar: AvatarTransformer) -> None:
    latents, timestep, text, condition, audio = inputs()
    zeros = avatar(latents, timestep, text, condition, torch.zeros_like(audio))
    assert (zeros - avatar(latents, timestep, text, condition)).abs().max() > 1e-3


@torch.no_grad()
def test_lora_active_and_merged(avatar: AvatarTransformer) -> None:
    latents, timestep, text, condition, audio = inputs(2)
    joined = torch.cat([latents, condition], dim=1)
    before = avatar(latents, timestep, text, condition, audio)
    inject_lora(avatar, rank=8, alpha=4.0)
    assert len(lora_layers(avatar)) == 6 * 10
    for layer in lora_layers(avatar):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    expected = official(weights_of(avatar), joined, timestep, text, audio)
    assert (expected - before).abs().max() > 0.05
    assert (avatar(latents, timestep, text, condition, audio) - expected).abs().max() < 1e-5
    merge_lora(avatar)
    assert lora_layers(avatar) == []
    assert (avatar(latents, timestep, text, condition, audio) - expected).abs().max() < 1e-5
