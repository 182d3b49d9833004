from pathlib import Path

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from omniavatar.encoders.text import TextEncoder, clean_text, load_text_encoder, pad_text, save_text_encoder
from tests.omniavatar import original_umt5

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


@torch.no_grad()
def test_it_computes_what_the_original_file_was_made_for(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Against a second writing of the network, on texts longer than the table of distances is exact, and padded."""
    weights = original_umt5.random_weights(vocabulary=50, dim=24, heads=3, head_dim=8, inner=40, layers=3)
    torch.save(weights, tmp_path / "umt5.pth")
    encoder = load_text_encoder(tmp_path / "umt5.pth", tokenizer_folder)
    ids = torch.randint(0, 50, (2, 160), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(160)[None] < torch.tensor([[160], [9]])
    expected = original_umt5.encode(weights, ids, mask)
    assert expected.std() > 0.3
    states = encoder.model(input_ids=ids, attention_mask=mask)[0]
    assert (states - expected)[mask].abs().max() < 1e-5


def test_both_layouts_come_back_as_they_were(text_encoder: TextEncoder, tokenizer_folder: Path, tmp_path: Path) -> None:
    expected = text_encoder.encode(PROMPTS)
    save_text_encoder(text_encoder, tmp_path / "a.pth", layout="original")
    loaded = load_text_encoder(tmp_path / "a.pth", tokenizer_folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(PROMPTS), expected, strict=True))
    save_text_encoder(loaded, tmp_path / "folder")
    loaded = load_text_encoder(tmp_path / "folder", tokenizer_folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(PROMPTS), expected, strict=True))
    save_text_encoder(loaded, tmp_path / "b.pth", layout="original")
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert list(first) == list(second) == sorted(first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    ids = torch.tensor([[3, 4, 1]])
    theirs = UMT5EncoderModel.from_pretrained(tmp_path / "folder")
    assert torch.equal(theirs(ids)[0], text_encoder.model(ids)[0])


def test_what_the_original_layout_cannot_say_is_not_written(text_encoder: TextEncoder, tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    plain = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-silu"))
    with pytest.raises(ValueError, match="cannot represent .*gated-silu"):
        save_text_encoder(TextEncoder(plain, text_encoder.tokenizer), tmp_path / "a.pth", layout="original")


def test_an_absent_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_text_encoder(tmp_path / "original.pth", tmp_path / "no_tokenizer")
