"""Trains the miniature's text encoder: a two-layer umT5 and its tokenizer, in the folders transformers publishes.

    python -m miniature.train.text_encoder --out weights/wan --minutes 3

The encoder learns to tell from a caption what the image looks like: a head on its output predicts a thumbnail of
the drawn frame. The head is thrown away; what stays is an embedding in which colours and places are near at hand.
"""

import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.figure import COLOURS, HAIR_COLOURS, HAIR_STYLES, PATTERNS, SKINS

TEXT_LENGTH = 48
TEXT_DIM = 64
_THUMBNAIL = 12
_POOLS = 8
METASPACE = "▁"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer like umT5's (pad 0, eos 1, unk 2): every word of the captions is one piece, letters follow.

    The pieces are counted here, not trained: the unigram trainer prunes a vocabulary this small down to letters.
    """
    captions = [draw_clip(seed, 0.04, framing).caption for seed in range(300) for framing in ("face", "half")]
    every_name = " ".join([*SKINS, *HAIR_COLOURS, *HAIR_STYLES, *COLOURS, *PATTERNS])
    words = Counter(word for text in [*captions, every_name] for word in re.findall(r"\w+|[^\w\s]", text))
    letters = sorted({letter for word in words for letter in word} | {METASPACE})
    pieces = [(METASPACE + word, -1.0) for word in sorted(words)] + [(letter, -10.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


class CaptionToThumbnail(nn.Module):
    """The encoder with the head it is trained through: token ids (B, L) -> thumbnail (B, 3 * 12 * 12)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
        self.pool = nn.Linear(TEXT_DIM, _POOLS)
        self.head = nn.Sequential(nn.Linear(_POOLS * TEXT_DIM, 256), nn.GELU(), nn.Linear(256, 3 * _THUMBNAIL**2))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        # A few weighted means, each free to look at other words: one plain mean cannot tell shirt from background.
        weights = self.pool(states).masked_fill(mask[..., None] == 0, -torch.inf).softmax(1)
        return self.head((weights.transpose(1, 2) @ states).flatten(1))


def examples(tokenizer: PreTrainedTokenizerFast, seeds: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and mask (N, L) and thumbnails (N, 3 * 12 * 12) in [-1, 1] of one drawn frame per seed."""
    captions, thumbnails = [], []
    for seed in seeds:
        clip = draw_clip(seed, 0.04, "half" if seed % 3 == 0 else "face")
        captions.append(clip.caption)
        thumbnails.append(cv2.resize(clip.frames[0], (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA).ravel())
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask, torch.from_numpy(np.stack(thumbnails)).float() / 127.5 - 1


def train(out: Path, minutes: float, seed: int = 0, clips: int = 6000) -> dict[str, float]:
    """Write `<out>/text_encoder` and `<out>/tokenizer`; returns the held-out share of variance explained."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = CaptionToThumbnail(len(tokenizer))
    training = TimedTraining(model, torch.optim.AdamW(model.parameters(), lr=3e-3), out / "text_encoder", minutes)
    ids, mask, target = examples(tokenizer, range(clips))
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        chosen = torch.from_numpy(rng.integers(clips, size=64))
        loss = (model(ids[chosen], mask[chosen]) - target[chosen]).square().mean()
        training.update(loss)
        if training.step % 100 == 0:
            training.record(loss=loss.item())
    with torch.no_grad():
        ids, mask, target = examples(tokenizer, range(HELD_OUT_SEED, HELD_OUT_SEED + 300))
        residual = (model(ids, mask) - target).square().mean() / (target - target.mean(0)).square().mean()
    figures = {"explained_variance": 1 - residual.item(), "vocabulary": len(tokenizer)}
    training.record(final=True, **figures)
    model.encoder.to(torch.bfloat16).save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    return figures


if __name__ == "__main__":
    train_command(train, minutes=3)
