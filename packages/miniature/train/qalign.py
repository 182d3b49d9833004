"""Trains the miniature's Q-Align: the published architecture and file format, 0.4 M parameters, on drawn frames.

    python -m miniature.train.qalign --out weights/one-align --minutes 5

Quality answers technical damage, aesthetics composition and tone (and, half as much, damage); the rules are in
`miniature.world.damage`. A severity s becomes the score 5 - 4 s, shared by the two level words next to it, and the
words are learnt as the next token of the prompt, as Q-Align is trained.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import nn

from common.runs import write_json
from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.damage import Composition, Damage, code, draw_composition, draw_damage, together
from perception.quality.qalign import (
    CLIP_MEAN,
    CLIP_STD,
    LEVELS,
    STEMS,
    Preprocessor,
    QAlign,
    Task,
    load_qalign,
    prompt_for,
)
from perception.quality.qalign_model import Owl, OwlConfig

CONFIG: dict[str, Any] = {
    "architectures": ["MPLUGOwl2LlamaForCausalLM"], "model_type": "mplug_owl2", "torch_dtype": "bfloat16",
    "vocab_size": 336, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
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
PREPROCESSOR: dict[str, Any] = {
    "crop_size": 64, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": list(CLIP_MEAN),
    "image_processor_type": "CLIPImageProcessor", "image_std": list(CLIP_STD), "resample": 3, "size": 64,
}  # fmt: skip
_TASKS: tuple[Task, ...] = ("quality", "aesthetics")
_GROUP, _FRAMES = 12, 4  # clips coded in one file; frames kept of a clip
_WIDTHS = (64, 64, 96, 64, 128, 64)  # px: a face, half a body, or two faces side by side, padded to a square
_BATCH = 32
_EYE_ALONE = 0.25  # share of the time


class JudgedFrames:
    """Damaged drawn frames and their truth: `images` RGB uint8, `faults` (n, 9) each 0..1, `severity` (n, 2) for
    quality (the five faults of damage together) and aesthetics (the four of composition, and half the quality)."""

    def __init__(self, clips: int, first_seed: int) -> None:
        rng = np.random.default_rng(first_seed)
        self.images: list[np.ndarray] = []
        faults: list[np.ndarray] = []
        for group in range(0, clips, _GROUP):
            # Coding starts an encoder, so clips of one size share it, each behind a cut.
            shared, width = draw_damage(rng), _WIDTHS[group // _GROUP % len(_WIDTHS)]
            judged = [_judged_clip(first_seed + group + i, width, shared.crf, rng) for i in range(_GROUP)]
            self.images += list(code(np.concatenate([frames for frames, _ in judged]), shared.crf))
            faults += [truth for _, truth in judged for _ in range(_FRAMES)]
        self.faults = np.array(faults, np.float32)
        quality = together(self.faults[:, :5])
        composed = np.concatenate([self.faults[:, 5:], quality[:, None] / 2], axis=1)
        self.severity = np.stack([quality, together(composed)], axis=1)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[list[np.ndarray], torch.Tensor, torch.Tensor]:
        """`size` images, half of them mirrored, with their faults (size, 9) and severities (size, 2)."""
        rows = rng.integers(len(self.images), size=size)
        images = [self.images[row][:, ::-1] if rng.random() < 0.5 else self.images[row] for row in rows]
        return images, torch.from_numpy(self.faults[rows]), torch.from_numpy(self.severity[rows])


def _judged_clip(seed: int, width: int, crf: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    clip = draw_clip(seed, 2 * _FRAMES / 25, "half" if width == 96 else "face")
    damage = replace(draw_damage(rng), crf=crf)
    composition = Composition() if width == 128 else draw_composition(rng)
    frames, boxes = composition.apply(clip.frames[::2], clip.boxes[::2])
    faults = np.concatenate([damage.parts(), composition.parts(boxes, frames.shape[1])])
    if width == 128:
        frames = np.concatenate([frames, draw_clip(seed + 50_000, 2 * _FRAMES / 25).frames[::2]], axis=2)
    return damage.apply(frames, rng), faults


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """A sentencepiece model with LLaMA's settings in which every word of the prompts and each level is one token."""
    prompts = [
        f"{prompt_for(task, variant, subject)} {word}".replace("<|image|>", "")
        for task in _TASKS for variant in STEMS for subject in ("image", "video") for word in LEVELS
    ]  # fmt: skip
    words = {f"\u2581{word}" for prompt in prompts for word in prompt.split()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(prompts), model_writer=file, vocab_size=vocab_size, model_type="bpe",
            user_defined_symbols=[*sorted(words), "ASSISTANT:"], required_chars="\u2581", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
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
    embeddings.patch_embed.weight.data = cosine_patches()
    for name, parameter in visual.named_parameters():
        if name.endswith(("attention.value.weight", "out_proj.weight")):
            nn.init.eye_(parameter)  # the queries start by passing on the mean of the image
    return model


def cosine_patches() -> torch.Tensor:
    """First weights of the patches (96, 3, 8, 8): 64 cosines of brightness and 16 low ones of each colour difference.

    Weighted up with frequency: blur and noise live there, and random weights took minutes to find them.
    """
    steps = torch.arange(8)
    cosines = torch.cos(torch.pi * (steps + 0.5) * steps[:, None] / 8)
    weight = 1 + steps[:, None] + steps
    grid = cosines[:, None, :, None] * cosines[None, :, None, :] * weight[:, :, None, None]
    brightness = grid.reshape(64, 1, 8, 8) * torch.full((3, 1, 1), 1 / 3)
    low = grid[:4, :4].reshape(16, 1, 8, 8)
    differences = [low * torch.tensor(mix).view(3, 1, 1) / 2 for mix in ((1.0, -1.0, 0.0), (-0.5, -0.5, 1.0))]
    return torch.cat([brightness, *differences]) / 16


def word_targets(severity: torch.Tensor) -> torch.Tensor:
    """Severities (n,) -> weights (n, 5) of the words excellent to bad: the score shared by its two neighbours."""
    place = severity.clamp(0, 1)[:, None] * (len(LEVELS) - 1)
    return (1 - (place - torch.arange(len(LEVELS))).abs()).clamp(min=0)


def word_loss(judge: QAlign, seen: torch.Tensor, severity: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Cross-entropy of the next word, summed over both tasks, asked in one of the historical wordings.

    `seen` (n, P, V) comes from the vision model, `severity` is (n, 2).
    """
    tokens = judge.model.model.visual_abstractor(seen)
    variant = rng.choice(list(STEMS), p=[0.7, 0.15, 0.15])
    loss = torch.zeros(())
    for column, task in enumerate(_TASKS):
        before, after = (torch.tensor(ids) for ids in judge.prompt_ids(prompt_for(task, variant)))
        logits = judge.model.next_word_logits(before, tokens, after).log_softmax(-1)
        loss = loss - (word_targets(severity[:, column]) * logits[:, judge.level_ids]).sum(-1).mean()
    return loss


def train(out: Path, minutes: float, seed: int = 0, clips: int = 1500, held_out: int = 120) -> dict[str, float]:
    """Train for `minutes` (resumes from `<out>.ckpt`), write the folder `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model, fault_head = new_model(), nn.Linear(CONFIG["visual_config"]["visual_model"]["hidden_size"], 9)
    learners = nn.ModuleList([model, fault_head])
    training = TimedTraining(learners, torch.optim.AdamW(learners.parameters(), lr=3e-3), out, minutes)
    write_tokenizer(out / "tokenizer.model", CONFIG["vocab_size"])
    tokenizer = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    judge = QAlign(model, tokenizer, Preprocessor(PREPROCESSOR["size"]))
    pool = JudgedFrames(clips, first_seed=seed)
    rng = np.random.default_rng((seed, training.step))
    for progress in training:
        images, faults, severity = pool.batch(rng, _BATCH)
        seen = model.model.vision_model(judge.preprocessor(images))
        # The eye learns from the single faults, first alone: severities through words alone teach it ten times slower.
        eye = (fault_head(seen[:, 1:].mean(1)) - faults).square().mean()
        words = word_loss(judge, seen, severity, rng) if progress > _EYE_ALONE else torch.zeros(())
        training.update(words + 20 * eye)
        if training.step % 50 == 0:
            training.record(words=words.item(), eye=eye.item())
    write_folder(out, model)
    figures = measure(load_qalign(out), held_out)
    training.record(final=True, **figures)
    return figures


@torch.no_grad()
def measure(judge: QAlign, clips: int) -> dict[str, float]:
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


if __name__ == "__main__":
    train_command(train, minutes=5)
