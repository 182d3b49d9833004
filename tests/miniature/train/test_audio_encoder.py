"""The audio encoder's training: it learns phones, resumes, and writes a folder that transformers reads too."""

import json
import math

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from miniature.train.audio_encoder import HIDDEN, PhoneReader, examples, phone_loss, train
from miniature.world.clips import draw_clip
from miniature.world.voice import N_PHONES
from omniavatar.encoders.audio import load_audio_encoder


def test_loss_of_not_knowing_and_of_knowing() -> None:
    shares = torch.eye(N_PHONES)[None]
    assert phone_loss(torch.zeros(1, N_PHONES, N_PHONES), shares).item() == pytest.approx(math.log(N_PHONES), rel=1e-5)
    assert phone_loss(50 * shares, shares).item() < 1e-6


def test_training_learns_the_phones_it_hears() -> None:
    torch.manual_seed(0)
    reader = PhoneReader()
    sound, shares = examples(range(2, 4))
    assert reader(sound).shape == shares.shape == (2, 60, N_PHONES)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=4e-3)
    losses = []
    for _ in range(40):
        loss = phone_loss(reader(sound), shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_examples_are_normalised_also_after_a_codec() -> None:
    sound, shares = examples(range(5, 7))  # seed 5 goes through AAC
    assert torch.allclose(sound.mean(1), torch.zeros(2), atol=1e-4)
    assert torch.allclose(sound.std(1), torch.ones(2), atol=1e-2)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 60), atol=1e-4)


def test_short_training_is_resumed_and_loads(tmp_path) -> None:
    out = tmp_path / "wav2vec2"
    figures = train(out, minutes=0.01, clips=8, judged=2)
    assert figures["loss"] > figures["floor"] > 0
    first = torch.load(tmp_path / "wav2vec2.ckpt", weights_only=True)
    train(out, minutes=2 * first["seconds"] / 60, clips=8, judged=2)
    steps = [json.loads(line)["step"] for line in (tmp_path / "wav2vec2.jsonl").read_text().splitlines()]
    assert steps[-1] > first["step"]
    clip = draw_clip(1_000_005, 1.0)
    encoder = load_audio_encoder(out)
    states = encoder.encode(clip.audio)
    assert states.shape == (25, 5 * HIDDEN)
    plain = Wav2Vec2Model.from_pretrained(out)
    assert sum(p.numel() for p in plain.parameters()) == 84_672
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(out)
    assert (extractor.sampling_rate, extractor.do_normalize) == (16_000, True)
