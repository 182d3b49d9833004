"""Trains the miniature's Q-Align: the published architecture and file format, 0.4 M parameters, on drawn frames.

    python -m miniature.train_qalign --out weights/one-align --minutes 5

Quality answers technical damage, aesthetics composition and tone (and, half as much, damage); the rules are in
`miniature.damage`. A severity s becomes the score 5 - 4 s, shared by the two level words next to it, and the words
are learnt as the next token of the prompt, as Q-Align is trained.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from scipy.stats import spearmanr
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import nn

from common.runs import write_json
from miniature.damage import Damage, code, draw_composition, draw_damage
from miniature.timed import TimedTraining
from miniature.world import HELD_OUT_SEED, draw_clip
from perception.qalign import CLIP_MEAN, CLIP_STD, LEVELS, STEMS, Preprocessor, QAlign, Task, load_qalign, prompt_for
from perception.qalign_model import Owl, OwlConfig

CONFIG = {
    "architectures": ["MPLUGOwl2LlamaForCausalLM"], "model_type": "mplug_owl2", "torch_dtype": "bfloat16",
    "vocab_size": 352, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "visual_config": {
        "visual_model": {
            "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 8, "layer_norm_eps": 1e-6,
        },
        "visual_abstractor": {
            "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_learnable_queries": 8, "grid_size": 8, "layer_norm_eps": 1e-6,
        },
    },
}  # fmt: skip
PREPROCESSOR = {
    "crop_size": 64, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": list(CLIP_MEAN),
    "image_processor_type": "CLIPImageProcessor", "image_std": list(CLIP_STD), "resample": 3, "size": 64,
}  # fmt: skip
_TASKS: tuple[Task, ...] = ("quality", "aesthetics")
_GROUP, _FRAMES = 12, 4  # clips coded in one file; frames kept of a clip
_BATCH = 32


class JudgedFrames:
    """Damaged drawn frames with what a judge should say: `images` RGB uint8, `severity` (n, 2) quality, aesthetics."""

    def __init__(self, clips: int, first_seed: int) -> None:
        rng = np.random.default_rng(first_seed)
        self.images: list[np.ndarray] = []
        severities: list[tuple[float, float]] = []
        for group in range(0, clips, _GROUP):
            # Coding starts an encoder, so clips of one framing share it, each behind a cut.
            shared, side = draw_damage(rng), 96 if group // _GROUP % 4 == 3 else 64
            judged = [_judged_clip(first_seed + group + i, side, shared.crf, rng) for i in range(_GROUP)]
            self.images += list(code(np.concatenate([frames for frames, _ in judged]), shared.crf))
            severities += [severity for _, severity in judged for _ in range(_FRAMES)]
        self.severity = np.array(severities, np.float32)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[list[np.ndarray], torch.Tensor]:
        """`size` pictures, half of them mirrored, and their severities (size, 2)."""
        rows = rng.integers(len(self.images), size=size)
        images = [self.images[row][:, ::-1] if rng.random() < 0.5 else self.images[row] for row in rows]
        return images, torch.from_numpy(self.severity[rows])


def _judged_clip(seed: int, side: int, crf: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[float, float]]:
    clip = draw_clip(seed, 2 * _FRAMES / 25, "half" if side == 96 else "face")
    damage, composition = replace(draw_damage(rng), crf=crf), draw_composition(rng)
    frames, boxes = composition.apply(clip.frames[::2], clip.boxes[::2])
    quality = damage.severity(side)
    aesthetics = 1 - (1 - composition.severity(boxes, side)) * (1 - quality / 2)
    return damage.apply(frames, rng), (quality, aesthetics)


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """A sentencepiece model with LLaMA's settings, learnt from the prompts, so that each level word is one token."""
    prompts = [
        f"{prompt_for(task, variant, subject)} {word}"
        for task in _TASKS for variant in STEMS for subject in ("image", "video") for word in LEVELS
    ]  # fmt: skip
    sentences = [part for prompt in prompts for part in prompt.replace("\n", " ").split("<|image|>")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences + 100 * list(LEVELS)), model_writer=file, vocab_size=vocab_size,
            model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip


def write_folder(out: Path, model: Owl) -> None:
    """The published layout: config, preprocessor, tokenizer and bfloat16 safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", CONFIG)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
    write_json(out / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def new_model() -> Owl:
    """Random weights with the usual small embeddings."""
    model = Owl(OwlConfig.from_json(CONFIG))
    visual = model.model.visual_abstractor
    embeddings = model.model.vision_model.embeddings
    small = (model.model.embed_tokens.weight, visual.query_embeds, visual.vit_eos)
    for tensor in (*small, embeddings.cls_token, embeddings.position_embedding):
        nn.init.normal_(tensor, std=0.1)
    return model


def word_targets(severity: torch.Tensor) -> torch.Tensor:
    """Severities (n,) -> weights (n, 5) of the words excellent to bad: the score shared by its two neighbours."""
    place = severity.clamp(0, 1)[:, None] * (len(LEVELS) - 1)
    return (1 - (place - torch.arange(len(LEVELS))).abs()).clamp(min=0)


def word_loss(
    judge: QAlign, images: list[np.ndarray], severity: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """Cross-entropy of the next word, summed over both tasks, asked in one of the historical wordings."""
    tokens = judge.model.encode_images(judge.preprocessor(images))
    variant = rng.choice(list(STEMS), p=[0.7, 0.15, 0.15])
    loss = torch.zeros(())
    for column, task in enumerate(_TASKS):
        before, after = (torch.tensor(ids) for ids in judge.prompt_ids(prompt_for(task, variant)))
        logits = judge.model.next_word_logits(before, tokens, after).log_softmax(-1)
        loss = loss - (word_targets(severity[:, column]) * logits[:, judge.level_ids]).sum(-1).mean()
    return loss


def train(out: Path, minutes: float, seed: int = 0, clips: int = 1800) -> dict[str, float]:
    """Train for `minutes` (resumes from `<out>.ckpt`), write the folder `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = new_model()
    training = TimedTraining(model, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01), out, minutes)
    write_tokenizer(out / "tokenizer.model", CONFIG["vocab_size"])
    tokenizer = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    judge = QAlign(model, tokenizer, Preprocessor(PREPROCESSOR["size"]))
    pool = JudgedFrames(clips, first_seed=seed)
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        loss = word_loss(judge, *pool.batch(rng, _BATCH), rng)
        training.update(loss)
        if training.step % 100 == 0:
            training.record(loss=loss.item())
    write_folder(out, model)
    figures = measure(load_qalign(out))
    training.record(final=True, **figures)
    return figures


@torch.no_grad()
def measure(judge: QAlign, clips: int = 120) -> dict[str, float]:
    """Figures on held-out seeds: rank correlations with severity, means of planted kinds, and the refusal threshold.

    The threshold on quality separates good frames (only coded) from blur of sigma 2 and noise of 25 at 64 px; it is
    chosen on half of the clips and its balanced accuracy taken on the other half.
    """
    held_out = JudgedFrames(clips, HELD_OUT_SEED)
    ratings = judge.rate(held_out.images, _TASKS)
    figures = {
        f"spearman_{task}": float(spearmanr(-held_out.severity[:, column], ratings[task].scores).statistic)
        for column, task in enumerate(_TASKS)
    }
    kinds = {"clean": Damage(), "soft": Damage(blur=0.7), "blur": Damage(blur=2.0), "noise": Damage(noise=25.0)}
    scores = {name: judge.score(planted_frames(damage, clips)) for name, damage in kinds.items()}
    figures |= {f"mean_{name}": float(values.mean()) for name, values in scores.items()}
    bad = np.stack([scores["blur"], scores["noise"]], axis=1)
    half = len(bad) // 2
    threshold = best_threshold(scores["clean"][:half], bad[:half])
    kept, refused = scores["clean"][half:] >= threshold, bad[half:] < threshold
    return figures | {"threshold": threshold, "threshold_accuracy": float((kept.mean() + refused.mean()) / 2)}


def planted_frames(damage: Damage, clips: int) -> list[np.ndarray]:
    """The middle frame of `clips` held-out face clips after `damage` and its coding."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawn = (draw_clip(HELD_OUT_SEED + 50_000 + i, 5 / 25).frames for i in range(clips))
    return list(code(np.concatenate([damage.apply(frames, rng) for frames in drawn]), damage.crf)[2::5])


def best_threshold(good: np.ndarray, bad: np.ndarray) -> float:
    """The middle of the scores 1..5 at which fewest good ones fall below and bad ones reach it, both weighted alike."""
    candidates = np.linspace(1, 5, 401)
    accuracy = [(good >= value).mean() + (bad < value).mean() for value in candidates]
    return float(np.median(candidates[np.isclose(accuracy, max(accuracy))]))


def main(out: Annotated[Path, typer.Option()], minutes: Annotated[float, typer.Option()] = 5, seed: int = 0) -> None:
    """Train the picture judge of the small world."""
    train(out, minutes, seed)


if __name__ == "__main__":
    typer.run(main)
