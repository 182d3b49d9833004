"""mPLUG-Owl2: against transformers' LLaMA where it is the same network, closed forms where it is its own."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from perception.quality.qalign_model import LanguageLayer, Multiway, Owl, OwlConfig, Rows, rotary_tables
from perception.quality.qalign_vision import AbstractorConfig, VisionConfig

VISION = VisionConfig(24, 40, 2, 4, image_size=28, patch_size=7)
ABSTRACTOR = AbstractorConfig(24, 30, 2, 4, num_learnable_queries=5, grid_size=4)
TINY = OwlConfig(50, 32, 48, 2, 4, vision=VISION, abstractor=ABSTRACTOR)


def randomised(module, std=0.4):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def test_full_size_names_shapes_and_counts():
    with torch.device("meta"):
        state = Owl(OwlConfig()).state_dict()
    assert len(state) == 862
    assert sum(t.numel() for n, t in state.items() if not n.endswith("pos_embed")) == 8_197_859_328
    expected = {
        "model.embed_tokens.weight": (32000, 4096),
        "model.layers.31.self_attn.k_proj.multiway.1.weight": (4096, 4096),
        "model.layers.0.post_attention_layernorm.multiway.0.weight": (4096,),
        "model.layers.31.mlp.down_proj.weight": (4096, 11008),
        "model.vision_model.embeddings.position_embedding": (1, 1025, 1024),
        "model.vision_model.embeddings.patch_embed.weight": (1024, 3, 14, 14),
        "model.vision_model.encoder.layers.23.self_attn.query_key_value.weight": (3072, 1024),
        "model.visual_abstractor.query_embeds": (1, 64, 1024),
        "model.visual_abstractor.vit_eos": (1, 1, 4096),
        "model.visual_abstractor.encoder.layers.5.crossattention.attention.k_pos_embed": (1025, 1024),
        "model.visual_abstractor.encoder.layers.5.crossattention.output.mlp.w1.weight": (2816, 1024),
        "model.visual_abstractor.visual_fc.weight": (4096, 1024),
        "lm_head.weight": (32000, 4096),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_language_layers_with_equal_ways_are_llama():
    layers = [randomised(LanguageLayer(TINY)) for _ in range(2)]
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    llama = LlamaModel(config).eval()
    for ours, theirs in zip(layers, llama.layers, strict=True):
        state = ours.state_dict()
        for name in list(state):
            if ".multiway.1." in name:
                state[name].copy_(state[name.replace(".multiway.1.", ".multiway.0.")])
        plain = {name.replace(".multiway.0", ""): t for name, t in state.items() if ".multiway.1." not in name}
        theirs.load_state_dict(plain)
    rows = Rows(before=3, image=4, after=2, batch=2)
    x = torch.randn(2, 9, 32)
    x[1, :3] = x[0, :3]  # both prompts begin alike, and what they share is computed once
    packed = rows.join(x[:1, :3], x[:, 3:])
    assert packed.shape == (3 + 2 * 6, 32)
    with torch.no_grad():
        expected = llama(inputs_embeds=x).last_hidden_state
        rotary = rotary_tables(rows.positions(x.device), 8, 10000.0, x.dtype)
        for layer in layers:
            packed = layer(packed, rows, rotary)
        beginning, rest = rows.split(packed)
        y = torch.cat([beginning.expand(2, -1, -1), rest], dim=1)
        normalised = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(normalised * llama.norm.weight, expected, atol=1e-5, rtol=0)


def test_multiway_sends_image_positions_through_the_second_copy():
    ways = Multiway(lambda: nn.Linear(4, 4, bias=False))
    x = torch.randn(7, 4)
    mixed = ways(x, (2, 5))
    text, image = (way(x) for way in ways.multiway)
    torch.testing.assert_close(mixed[[0, 1, 5, 6]], text[[0, 1, 5, 6]])
    torch.testing.assert_close(mixed[2:5], image[2:5])


def test_rows_know_their_positions_and_come_apart_as_they_were_put_together():
    rows = Rows(before=2, image=3, after=1, batch=2)
    assert rows.span == (2, 8)
    assert rows.positions(torch.device("cpu")).tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 5]
    beginning, rest = torch.randn(1, 2, 4), torch.randn(2, 4, 4)
    again = rows.split(rows.join(beginning, rest))
    assert torch.equal(again[0], beginning) and torch.equal(again[1], rest)


def test_text_after_the_picture_sees_it_and_text_before_does_not():
    owl = randomised(Owl(TINY), std=0.2)
    before, after = torch.tensor([1, 4, 5]), torch.tensor([7, 8])
    image = torch.randn(2, 6, 32)
    with torch.no_grad():
        logits = owl.next_word_logits(before, image, after)
        again = owl.next_word_logits(before, image.flip(0), after)
    assert logits.shape == (2, 50)
    torch.testing.assert_close(logits, again.flip(0))
    assert not torch.allclose(logits[0], logits[1])
    with torch.no_grad():
        some = owl.next_word_logits(before, image, after, torch.tensor([9, 2]))
        alone = owl.next_word_logits(before, image[:1], after)
    torch.testing.assert_close(some, logits[:, [9, 2]])
    torch.testing.assert_close(alone, logits[:1])
