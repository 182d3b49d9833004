"""Trains the miniature's audio encoder: a three-layer wav2vec2 that knows the phones of the small world.

    python -m miniature.train.audio_encoder --out weights/wav2vec2 --minutes 3

The voice is synthesised, so the share of every phone in every 40 ms is known and learnt directly; the linear head on
the last hidden state is thrown away. The features run at the image's 25 per second, as OmniAvatar uses them.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.recorded import record
from miniature.world.voice import N_PHONES
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder, normalise

HIDDEN = 48
CONFIG = {
    "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
    "layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}  # fmt: skip
_SECONDS, _BATCH = 2.4, 8
_PURE = 0.9  # a frame whose main phone has at least this share has one right answer


class PhoneReader(nn.Module):
    """The encoder with the head it is trained through: normalised audio (B, N) -> phone logits (B, N / 640, P)."""

    def __init__(self) -> None:
        super().__init__()
        # AudioEncoder brings the 25 per second and freezes what it is given: here the weights must move again.
        self.encoder = AudioEncoder(Wav2Vec2Model(Wav2Vec2Config(**CONFIG))).model.requires_grad_(True).train()
        self.head = nn.Linear(HIDDEN, N_PHONES)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.encoder(wave).last_hidden_state)


def examples(seeds: range) -> tuple[Tensor, Tensor]:
    """Normalised audio (n, N) and phone shares (n, T, P) of one clip per seed; one in four went through AAC."""
    waves, phones = [], []
    for seed in seeds:
        clip = draw_clip(seed, _SECONDS)
        audio = record(clip)[1] if seed % 4 == 1 else clip.audio
        waves.append(normalise(torch.from_numpy(audio)))
        phones.append(torch.from_numpy(clip.phones))
    return torch.stack(waves), torch.stack(phones)


def phone_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of logits (B, T, P) against the mixture (B, T, P) that is heard in each frame."""
    return cross_entropy(logits.flatten(0, 1), shares.flatten(0, 1))


@torch.no_grad()
def measure(reader: PhoneReader, clips: int) -> dict[str, float]:
    """On voices never trained on: share of pure frames heard right, cross-entropy, and its floor (mixtures)."""
    wave, shares = examples(range(HELD_OUT_SEED, HELD_OUT_SEED + clips))
    logits = reader(wave)
    pure = shares.amax(-1) >= _PURE
    right = (logits.argmax(-1) == shares.argmax(-1))[pure].float().mean()
    floor = torch.special.entr(shares).sum(-1).mean()
    return {"pure_frames_right": right.item(), "loss": phone_loss(logits, shares).item(), "floor": floor.item()}


def train(out: Path, minutes: float, seed: int = 0, clips: int = 600, judged: int = 40) -> dict[str, float]:
    """Train for `minutes` (resumes from `<out>.ckpt`), write the transformers folder `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    reader = PhoneReader()
    training = TimedTraining(reader, torch.optim.AdamW(reader.parameters(), lr=2e-3), out, minutes)
    wave, shares = examples(range(seed, seed + clips))
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        chosen = torch.from_numpy(rng.choice(clips, _BATCH, replace=False))
        loss = phone_loss(reader(_disturbed(wave[chosen], rng)), shares[chosen])
        training.update(loss)
        if training.step % 25 == 0:
            training.record(loss=loss.item())
    figures = measure(reader, judged)
    training.record(final=True, **figures)
    reader.encoder.save_pretrained(out)
    Wav2Vec2FeatureExtractor(sampling_rate=AUDIO_RATE, do_normalize=True, return_attention_mask=False).save_pretrained(
        out
    )
    load_audio_encoder(out)
    return figures


def _disturbed(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """A little noise, and a start anywhere within a quarter of a frame."""
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.03), wave.shape).astype(np.float32))
    return (wave + noise).roll(int(rng.integers(-SAMPLES_PER_FRAME // 4, SAMPLES_PER_FRAME // 4)), dims=1)


if __name__ == "__main__":
    train_command(train, minutes=3)
