"""A random vision-language model behaves as transformers' own; wrong folders are named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from perception.captions import Captioner, CaptionerError, load_captioner
from tests.random_captioner import SPECIAL, WORDS, write_captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("captioners") / "tiny")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return load_captioner(folder)


def _frames(*values: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(rng.normal(value, 40, (32, 48, 3)), 0, 255).astype(np.uint8) for value in values]


def test_the_answer_is_the_likeliest_word_after_word(captioner: Captioner) -> None:
    """Greedy decoding written out: the same tokens as `describe`, and the question is no part of the answer."""
    frames, prompt = _frames(40, 200), "a person talks"
    inputs = captioner._inputs(frames, prompt)
    tokens = inputs["input_ids"]
    assert tokens[0].tolist().count(WORDS.index("<image>")) == 2 * 4  # two pictures of four patches
    pixels = inputs["pixel_values"]
    for _ in range(5):
        with torch.no_grad():
            logits = captioner.model(input_ids=tokens, pixel_values=pixels).logits
        tokens = torch.cat([tokens, logits[:, -1:, SPECIAL:].argmax(-1) + SPECIAL], dim=1)
    written = captioner.processor.batch_decode(tokens[:, -5:], skip_special_tokens=True)[0]
    assert captioner.describe(frames, prompt, 5) == " ".join(written.split())


def test_it_sees_the_pictures_and_reads_the_prompt(captioner: Captioner) -> None:
    def logits(frames: list[np.ndarray], prompt: str) -> torch.Tensor:
        with torch.no_grad():
            return captioner.model(**captioner._inputs(frames, prompt)).logits[0, -1]

    plain = logits(_frames(40), "a person")
    assert not torch.allclose(plain, logits(_frames(220), "a person"), atol=1e-6)
    assert not torch.allclose(plain, logits(_frames(40), "a background"), atol=1e-6)


def test_a_processor_without_a_template_is_asked_plainly(tmp_path: Path) -> None:
    plain = load_captioner(write_captioner(tmp_path / "plain", template=None))
    inputs = plain._inputs(_frames(40, 200), "a person")
    assert inputs["input_ids"][0].tolist()[:8] == [WORDS.index("<image>")] * 8
    assert isinstance(plain.describe(_frames(40, 200), "a person", 3), str)


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        load_captioner(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CaptionerError, match="does not load as a vision-language model"):
        load_captioner(tmp_path)
    broken = write_captioner(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(CaptionerError, match="broken"):
        load_captioner(broken)
