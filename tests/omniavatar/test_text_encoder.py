from pathlib import Path

import pytest
import torch

from omniavatar.tensor_files import CheckpointError
from omniavatar.text_encoder import TextEncoder, clean_text, load_text_encoder, pad_text

PROMPTS = ["a man with red hair speaks and smiles", "a woman", "", "a man " * 20]


def test_text_is_cleaned_as_wan_does() -> None:
    assert clean_text("  schÃ¶n &amp;amp; \n klug  ") == "schön & klug"


def test_tokens_equal_those_of_a_padded_batch_with_a_mask(text_encoder: TextEncoder) -> None:
    encoded = text_encoder.encode(PROMPTS, batch_size=2)
    assert [len(states) for states in encoded] == [9, 3, 1, 12]
    padded = text_encoder.tokenizer(
        [clean_text(prompt) for prompt in PROMPTS],
        padding="max_length",
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    with torch.no_grad():
        reference = text_encoder.model(input_ids=padded.input_ids, attention_mask=padded.attention_mask)[0]
    reference = reference * padded.attention_mask[..., None]
    assert reference.std() > 0.1
    assert (pad_text(encoded, 12) - reference).abs().max() < 1e-5


def test_an_encoding_does_not_depend_on_its_batch(text_encoder: TextEncoder) -> None:
    together = text_encoder.encode(PROMPTS)
    alone = [text_encoder.encode([prompt])[0] for prompt in PROMPTS]
    assert max((a - b).abs().max() for a, b in zip(together, alone, strict=True)) < 1e-5


def test_length_comes_from_the_tokenizer_up_to_512(text_encoder: TextEncoder) -> None:
    assert text_encoder.text_length == 12
    boundless = TextEncoder(
        text_encoder.model, type(text_encoder.tokenizer)(tokenizer_object=text_encoder.tokenizer._tokenizer)
    )
    assert boundless.text_length == 512


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens does not fit into 4"):
        pad_text([torch.zeros(5, 2)], 4)


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers -> the names of models_t5_umt5-xxl-enc-bf16.pth, written apart from the loader."""
    table = {
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.0.SelfAttention": "attn",
        "layer.0.layer_norm": "norm1",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
        "encoder.block": "blocks",
        "encoder.final_layer_norm": "norm",
        "shared": "token_embedding",
    }
    renamed = {}
    for name, value in state.items():
        if "embed_tokens" in name:
            continue
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        renamed[name] = value.clone()
    return renamed


def test_both_layouts_load(text_encoder: TextEncoder, tokenizer_folder: Path, tmp_path: Path) -> None:
    expected = text_encoder.encode(PROMPTS)
    text_encoder.model.save_pretrained(tmp_path / "folder")
    state = original_names(text_encoder.model.state_dict())
    assert {"blocks.1.pos_embedding.embedding.weight", "blocks.0.ffn.gate.0.weight", "norm.weight"} <= state.keys()
    torch.save(state, tmp_path / "original.pth")
    for source in ("folder", "original.pth"):
        loaded = load_text_encoder(tmp_path / source, tokenizer_folder)
        assert all(torch.equal(a, b) for a, b in zip(loaded.encode(PROMPTS), expected, strict=True))


def test_wrong_files_are_refused(text_encoder: TextEncoder, tokenizer_folder: Path, tmp_path: Path) -> None:
    state = original_names(text_encoder.model.state_dict())
    state["blocks.1.norm3.weight"] = state.pop("blocks.1.norm2.weight")
    torch.save(state, tmp_path / "original.pth")
    with pytest.raises(CheckpointError) as caught:
        load_text_encoder(tmp_path / "original.pth", tokenizer_folder)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["missing", "unexpected"]
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_text_encoder(tmp_path / "original.pth", tmp_path / "no_tokenizer")
