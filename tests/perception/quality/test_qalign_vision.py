"""What Q-Align sees: against transformers' CLIP where it is the same network, closed forms where it is its own."""

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from perception.quality.qalign_vision import (
    AbstractorAttention,
    AbstractorConfig,
    VisionConfig,
    VisionModel,
    VisualAbstractor,
    grid_positions,
)

VISION = VisionConfig(24, 40, 2, 4, image_size=28, patch_size=7)
ABSTRACTOR = AbstractorConfig(24, 30, 2, 4, num_learnable_queries=5, grid_size=4)


def randomised(module, std=0.4):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def test_vision_model_is_clip():
    ours = randomised(VisionModel(VISION))
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    clip = CLIPVisionModel(config).eval()
    clip.load_state_dict({name: _clip_tensor(name, ours.state_dict()) for name in clip.state_dict()})
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        theirs = ours.post_layernorm(clip(pixels).last_hidden_state)
        torch.testing.assert_close(ours(pixels), theirs, atol=2e-6, rtol=0)


def _clip_tensor(name, state):
    """The tensor of ours that transformers calls `name`."""
    name = name.removeprefix("vision_model.")
    names = {
        "embeddings.class_embedding": "embeddings.cls_token",
        "embeddings.patch_embedding.weight": "embeddings.patch_embed.weight",
        "embeddings.position_embedding.weight": "embeddings.position_embedding",
        "pre_layrnorm.weight": "embeddings.pre_layernorm.weight",
        "pre_layrnorm.bias": "embeddings.pre_layernorm.bias",
    }
    if name in names:
        tensor = state[names[name]]
        return tensor if "patch" in name else tensor.squeeze()
    for row, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if part in name:
            mixed = state[name.replace(part, "query_key_value")].unflatten(0, (4, 3, -1))
            return mixed[:, row].flatten(0, 1)
    renamed = name.replace("out_proj", "dense").replace("layer_norm1", "input_layernorm")
    return state[renamed.replace("layer_norm2", "post_attention_layernorm")]


def test_grid_positions_are_sines_of_columns_then_rows():
    table = grid_positions(3, 8)
    assert table.shape == (10, 8) and (table[0] == 0).all()
    column, row = 2, 1
    angles = np.array([column, column / 100, row, row / 100])
    expected = np.concatenate([np.sin(angles[:2]), np.cos(angles[:2]), np.sin(angles[2:]), np.cos(angles[2:])])
    np.testing.assert_allclose(table[1 + 3 * row + column].numpy(), expected, atol=1e-12)


def test_abstractor_attention_is_the_sum_over_queries_and_image():
    attention = randomised(AbstractorAttention(ABSTRACTOR))
    queries, image = torch.randn(1, 5, 24), torch.randn(1, 17, 24)
    keys = torch.cat([queries, image], 1)[0]
    places = torch.cat([attention.q_pos_embed, attention.k_pos_embed])
    with torch.no_grad():
        q = attention.query(queries[0] + attention.q_pos_embed)
        k, v = attention.key(keys + places), attention.value(keys)
        heads = []
        for head in range(4):
            part = slice(6 * head, 6 * head + 6)
            heads.append(((q[:, part] @ k[:, part].T) / 6**0.5).softmax(-1) @ v[:, part])
        torch.testing.assert_close(attention(queries, image)[0], torch.cat(heads, 1), atol=1e-5, rtol=1e-5)


def test_abstractor_residual_starts_from_normalised_queries():
    abstractor = randomised(VisualAbstractor(ABSTRACTOR, 32))
    layer = abstractor.encoder["layers"][0].crossattention
    for linear in (layer.output.out_proj, layer.output.mlp.w2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    queries = 5 + 3 * torch.randn(1, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer(queries, torch.randn(1, 17, 24)), layer.norm1(queries))
        tokens = abstractor(torch.randn(2, 17, 24))
    assert tokens.shape == (2, 6, 32)
    torch.testing.assert_close(tokens[:, -1], abstractor.vit_eos[0].expand(2, -1))
