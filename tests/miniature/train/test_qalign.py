"""The picture judge's trainer: its truth, that it learns and resumes, and what the shipped weights can do."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentencepiece import SentencePieceProcessor

from miniature.train.qalign import (
    CONFIG,
    JudgedFrames,
    best_threshold,
    cosine_patches,
    measure,
    new_model,
    train,
    word_loss,
    word_targets,
    write_tokenizer,
)
from miniature.weights import weights_dir
from perception.quality.qalign import LEVELS, Preprocessor, QAlign, level_scores, load_qalign


@pytest.fixture(scope="module")
def judged():
    return JudgedFrames(72, first_seed=500)


def test_a_severity_is_shared_by_the_two_nearest_words():
    targets = word_targets(torch.tensor([0.0, 0.25, 0.625, 1.0])).numpy()
    np.testing.assert_allclose(targets, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]])
    np.testing.assert_allclose(targets @ [5, 4, 3, 2, 1], [5, 4, 2.5, 1])


def test_judged_frames_have_three_sizes_and_their_truth(judged):
    assert {image.shape for image in judged.images} == {(64, 64, 3), (96, 96, 3), (64, 128, 3)}
    assert len(judged.images) == len(judged.faults) == len(judged.severity)
    assert (judged.severity[:, 1] >= judged.severity[:, 0] / 2 - 1e-6).all()
    noisy = judged.faults[:, 1] > 0.7
    grain = np.array([np.abs(np.diff(image[:8, :8].astype(float), axis=0)).mean() for image in judged.images])
    assert grain[noisy].min() > np.median(grain[judged.severity[:, 0] == 0])


def test_every_word_of_the_prompts_is_one_token(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.model", CONFIG["vocab_size"])
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.vocab_size() <= CONFIG["vocab_size"]
    assert [len(tokenizer.encode(word)) for word in (*LEVELS, "quality", "aesthetics", "image")] == [1] * 8
    assert tokenizer.decode(tokenizer.encode("an unseen wörd\n")) == "an unseen wörd\n"
    write_tokenizer(tmp_path / "again.model", CONFIG["vocab_size"])
    assert (tmp_path / "again.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()


def test_patches_start_as_orthogonal_cosines():
    brightness = cosine_patches()[:64].flatten(1)
    gram = torch.nn.functional.normalize(brightness) @ torch.nn.functional.normalize(brightness).T
    torch.testing.assert_close(gram, torch.eye(64), atol=1e-5, rtol=0)


def test_a_few_pictures_are_learnt_through_the_words(tmp_path, judged):
    torch.manual_seed(0)
    write_tokenizer(tmp_path / "tokenizer.model", CONFIG["vocab_size"])
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    judge = QAlign(new_model(), tokenizer, Preprocessor(64))
    rows = np.argsort(judged.severity[:, 0])[:: len(judged.images) // 6][:6]
    images, severity = [judged.images[row] for row in rows], torch.from_numpy(judged.severity[rows])
    optimizer = torch.optim.AdamW(judge.model.parameters(), lr=2e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(40):
        loss = word_loss(judge, judge.model.model.vision_model(judge.preprocessor(images)), severity, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert spearmanr(judge.score(images), -judged.severity[rows, 0]).statistic > 0.8


def test_training_resumes_and_writes_a_folder_that_loads(tmp_path):
    out = tmp_path / "one-align"
    train(out, minutes=0.02, clips=12, held_out=12)
    first = torch.load(tmp_path / "one-align.ckpt", weights_only=True)["step"]
    figures = train(out, minutes=0.05, clips=12, held_out=12)
    assert torch.load(tmp_path / "one-align.ckpt", weights_only=True)["step"] > first > 0
    assert 1 <= figures["mean_clean"] <= 5
    assert json.loads((tmp_path / "one-align.jsonl").read_text().splitlines()[-1])["final"] is True
    assert load_qalign(out).score([np.zeros((64, 64, 3), np.uint8)]).shape == (1,)


def test_best_threshold_is_the_middle_of_the_gap():
    assert best_threshold(np.array([4.0, 4.5]), np.array([1.0, 2.0])) == pytest.approx(3.0, abs=0.02)


def test_shipped_judge_ranks_damage_and_finds_planted_faults():
    figures = measure(load_qalign(weights_dir() / "one-align"), clips=36)
    assert figures["spearman_quality"] > 0.75 and figures["spearman_aesthetics"] > 0.75
    assert figures["threshold_accuracy"] >= 0.97
    assert figures["mean_clean"] > figures["mean_soft"] > figures["mean_blur"] and figures["mean_noise"] < 2


def test_shipped_judge_is_as_published_and_small():
    folder = weights_dir() / "one-align"
    assert (folder / "model.safetensors").stat().st_size < 900_000
    judge = load_qalign(folder)
    black = judge.rate([np.zeros((64, 64, 3), np.uint8)])["quality"]
    np.testing.assert_allclose(black.scores, level_scores(black.logits))
