"""Scorers and encoders: how much arithmetic is spent twice, or on padding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from miniature.train.qalign import write_tokenizer
from omniavatar.encoders.text import TextEncoder
from perception.quality.qalign import Preprocessor, QAlign, Task, prompt_for
from perception.quality.qalign_model import Owl, OwlConfig
from perception.quality.qalign_vision import AbstractorConfig, VisionConfig
from perception.sync.syncnet import SyncNet
from tests.benchmarks.measure import Row, compare

TASKS: tuple[Task, ...] = ("quality", "aesthetics")
WORDS = 200


@torch.inference_mode()
def test_syncnet_whole_track(report: Callable[[Row], None]) -> None:
    """25 windows of the published widths; the peer cuts them out and batches them, as syncnet_python does."""
    torch.manual_seed(0)
    net = SyncNet().eval()
    volume = torch.randint(0, 256, (1, 3, 29, 224, 224)).float()

    def ours() -> Tensor:
        return net.embed_lips(volume)[0]

    def peer() -> Tensor:
        windows = torch.cat([volume[:, :, start : start + 5] for start in range(25)])
        return torch.cat([net.netfclip(net.netcnnlip(batch).flatten(1)) for batch in windows.split(20)])

    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
    # Only the first convolution spans time, so both multiply as much; what is won is pooling, norms and copies. The
    # convolutions that are left take half of the peer by themselves.
    report(compare("SyncNet lips, 29 frames of 224 px", "sliding windows", ours, peer, aim=0.6))


def test_umt5_by_length(report: Callable[[Row], None]) -> None:
    """32 captions of 20 to 150 tokens; the peer pads all of them to 512, as Wan does."""
    encoder = _text_encoder()
    rng = np.random.default_rng(0)
    captions = [" ".join(f"w{word}" for word in rng.integers(0, WORDS, n)) for n in rng.integers(19, 150, 32)]

    def ours() -> list[Tensor]:
        return encoder.encode(captions)

    @torch.inference_mode()
    def peer() -> list[Tensor]:
        batch = encoder.tokenizer(captions, padding="max_length", max_length=512, return_tensors="pt")
        ids, mask = batch["input_ids"].split(16), batch["attention_mask"].split(16)
        states = torch.cat([encoder.model(input_ids=i, attention_mask=m)[0] for i, m in zip(ids, mask, strict=True)])
        return [row[: int(kept.sum())] for row, kept in zip(states, batch["attention_mask"], strict=True)]

    for short, padded in zip(ours(), peer(), strict=True):
        torch.testing.assert_close(short, padded, rtol=1e-3, atol=1e-4)
    report(compare("umT5, 32 captions of 20-150 tokens", "padded to 512", ours, peer, aim=0.30))


def _text_encoder() -> TextEncoder:
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{n}" for n in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
    torch.manual_seed(1)
    sizes = {"vocab_size": len(words), "d_model": 128, "d_kv": 32, "d_ff": 320, "num_layers": 6, "num_heads": 4}
    return TextEncoder(UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu")).eval(), fast)


def test_qalign_batched(report: Callable[[Row], None], tmp_path: Path) -> None:
    """Eight pictures and both questions; the peer asks one question about one picture at a time, of every word."""
    judge = _judge(tmp_path / "tokenizer.model")
    pictures = list(np.random.default_rng(0).integers(0, 256, (8, 180, 320, 3), np.uint8))

    def ours() -> np.ndarray:
        rated = judge.rate(pictures, TASKS)
        return np.stack([rated[task].logits for task in TASKS])

    @torch.inference_mode()
    def ask(picture: np.ndarray, task: Task) -> np.ndarray:
        before, after = (torch.tensor(ids) for ids in judge.prompt_ids(prompt_for(task)))
        words = judge.model.next_word_logits(before, judge.model.encode_images(judge.preprocessor([picture])), after)
        return words[0, judge.level_ids].numpy()

    def peer() -> np.ndarray:
        return np.stack([[ask(picture, task) for picture in pictures] for task in TASKS])

    np.testing.assert_allclose(ours(), peer(), rtol=1e-3, atol=1e-4)
    report(compare("Q-Align, 8 pictures x 2 questions", "one by one", ours, peer, aim=0.65))


def _judge(tokenizer: Path) -> QAlign:
    """Layers, queries and prompt of the published model; its widths by 16 and its picture by 2."""
    write_tokenizer(tokenizer, 336)
    config = OwlConfig(
        vocab_size=400,
        hidden_size=256,
        intermediate_size=688,
        num_attention_heads=8,
        vision=VisionConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4, image_size=224),
        abstractor=AbstractorConfig(hidden_size=64, intermediate_size=176, num_attention_heads=4, grid_size=16),
    )
    torch.manual_seed(2)
    model = Owl(config).requires_grad_(False)
    visual = model.model.visual_abstractor
    nn.init.normal_(visual.query_embeds)  # zeros as built: every query would read the same
    return QAlign(model, SentencePieceProcessor(model_file=str(tokenizer)), Preprocessor(224))
