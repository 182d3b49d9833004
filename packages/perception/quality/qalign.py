"""Q-Align (arXiv 2312.17090): image quality (IQA) and aesthetics (ASE) from 1 to 5, from a local `one-align` folder.

The folder is read as published: config.json, preprocessor_config.json, tokenizer.model (sentencepiece) and safetensors
(or `pytorch_model*.bin`) weights, one file or sharded. Nothing is downloaded and no remote code runs.
A score is the expectation over five level words: softmax of their logits times 5, 4, 3, 2, 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from common.errors import DamagedFileError
from common.runs import read_json
from perception.config import Variant
from perception.quality.qalign_model import Owl, OwlConfig, QAlignError
from perception.quality.qalign_weights import check_sizes, check_weights, load_weights

Task = Literal["quality", "aesthetics"]

LEVELS = ("excellent", "good", "fair", "poor", "bad")
LEVEL_VALUES = (5.0, 4.0, 3.0, 2.0, 1.0)
# The three prompts in use since 2023 give different numbers (Q-Align scorer classes; `score()` of the hub code, which
# swaps the words of its stem; pyiqa, whose task is called "aesthetic"), so a result names its prompt.
STEMS: Mapping[Variant, str] = {
    "scorer": "The {task} of the {input} is",
    "automodel": "The {input} of the {task} is",
    "pyiqa": "The {task} of the {input} is",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Rating:
    """Scores (n,) float64 from 1 to 5 of n images, the five logits (n, 5) behind them and the literal prompt."""

    scores: np.ndarray
    logits: np.ndarray
    prompt: str


def level_scores(logits: np.ndarray) -> np.ndarray:
    """Expected level of logits (n, 5), ordered excellent to bad -> (n,). In float64: half precision is off by 0.003."""
    logits = np.asarray(logits, dtype=np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights @ np.array(LEVEL_VALUES) / weights.sum(axis=-1)


def prompt_for(task: Task, variant: Variant = "scorer", subject: Literal["image", "video"] = "image") -> str:
    """The literal prompt with `<|image|>` in the place of the image."""
    word = "aesthetic" if variant == "pyiqa" and task == "aesthetics" else task
    stem = STEMS[variant].format(task=word, input=subject)
    return f"USER: How would you rate the {word} of this {subject}?\n<|image|>\nASSISTANT: {stem}"


@dataclass(frozen=True)
class Preprocessor:
    """CLIP preprocessing by preprocessor_config.json: square padding in the mean colour, bicubic resize, scaling."""

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """RGB uint8 (H, W, 3), any sizes -> float32 (n, 3, size, size)."""
        pixels = np.stack([self._square(image) for image in images]).astype(np.float32) / 255
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normalised).permute(0, 3, 1, 2).contiguous()

    def _square(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise QAlignError(f"got an image {image.shape} {image.dtype}; Q-Align needs RGB uint8 (height, width, 3)")
        height, width = image.shape[:2]
        side = max(height, width)
        canvas = np.empty((side, side, 3), dtype=np.uint8)
        canvas[:] = [int(value * 255) for value in self.mean]  # truncated, as the authors do: (122, 116, 104)
        margin_y, margin_x = (side - height) // 2, (side - width) // 2
        canvas[margin_y : margin_y + height, margin_x : margin_x + width] = image
        return np.asarray(Image.fromarray(canvas).resize((self.size, self.size), Image.Resampling.BICUBIC))


class QAlign:
    """The scorer: images in batches, each seen once by the vision model whatever number of questions is asked."""

    def __init__(self, model: Owl, tokenizer: SentencePieceProcessor, preprocessor: Preprocessor) -> None:
        self.model, self.tokenizer, self.preprocessor = model.eval(), tokenizer, preprocessor
        self.level_ids = [self._encode(word)[0] for word in LEVELS]
        if len(set(self.level_ids)) < len(LEVELS):
            raise QAlignError(f"tokenizer.model gives {LEVELS} the first tokens {self.level_ids}; they must differ")

    def score(self, images: Sequence[np.ndarray], task: Task = "quality", variant: Variant = "scorer") -> np.ndarray:
        """Scores (n,) from 1 (bad) to 5 (excellent) of n RGB uint8 images (H, W, 3)."""
        return self.rate(images, (task,), variant)[task].scores

    def rate(
        self,
        images: Sequence[np.ndarray],
        tasks: Sequence[Task] = ("quality", "aesthetics"),
        variant: Variant = "scorer",
        batch_size: int = 16,
    ) -> dict[Task, Rating]:
        """One Rating per task for n RGB uint8 images. QAlignError when an image is not RGB uint8."""
        prompts = {task: prompt_for(task, variant) for task in tasks}
        batches: dict[Task, list[np.ndarray]] = {task: [np.empty((0, len(LEVELS)))] for task in tasks}
        for start in range(0, len(images), batch_size):
            tokens = self._image_tokens(images[start : start + batch_size])
            for task, prompt in prompts.items():
                batches[task].append(self._level_logits(tokens, prompt))
        logits = {task: np.concatenate(parts) for task, parts in batches.items()}
        return {task: Rating(level_scores(logits[task]), logits[task], prompts[task]) for task in tasks}

    @torch.inference_mode()
    def _image_tokens(self, images: Sequence[np.ndarray]) -> Tensor:
        weight = self.model.lm_head.weight
        return self.model.encode_images(self.preprocessor(images).to(weight.device, weight.dtype))

    @torch.inference_mode()
    def _level_logits(self, image_tokens: Tensor, prompt: str) -> np.ndarray:
        asked = (*self.prompt_ids(prompt), self.level_ids)
        before, after, levels = (torch.tensor(ids, device=image_tokens.device) for ids in asked)
        return self.model.next_word_logits(before, image_tokens, after, levels).double().cpu().numpy()

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before (with the start token) and after the image; the two texts are tokenised apart."""
        before, after = prompt.split("<|image|>")
        return [self.model.config.bos_token_id, *self._encode(before)], self._encode(after)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)


def load_qalign(folder: Path | str, device: str = "cpu", dtype: torch.dtype | None = None) -> QAlign:
    """A scorer from a folder in the published `one-align` format; widths come from its config.json.

    `dtype` defaults to float16 on an accelerator, as the authors run it, and to float32 on the CPU. Raises QAlignError
    when a file is absent or unreadable, or tensors are missing, unexpected or mis-shaped.
    """
    model, tokenizer, preprocessor = _empty(Path(folder))
    load_weights(model, Path(folder), device, dtype or (torch.float32 if device == "cpu" else torch.float16))
    return QAlign(model, tokenizer, preprocessor)


def check_qalign(folder: Path | str) -> None:
    """QAlignError, as `load_qalign`, unless `folder` is whole; reads the small files and the headers of the weights."""
    model, tokenizer, preprocessor = _empty(Path(folder))
    check_weights(model, Path(folder))
    QAlign(model, tokenizer, preprocessor)


def _empty(folder: Path) -> tuple[Owl, SentencePieceProcessor, Preprocessor]:
    """What the small files say: a model without memory, the tokenizer and the preprocessing."""
    content = _read_json(folder / "config.json")
    check_sizes(folder / "config.json", content)
    config = OwlConfig.from_json(content)
    tokenizer = _load_tokenizer(folder / "tokenizer.model", config.vocab_size)
    preprocessor = _load_preprocessor(folder / "preprocessor_config.json", config.vision.image_size)
    try:
        with torch.device("meta"):
            return Owl(config), tokenizer, preprocessor
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise QAlignError(
            f"{folder}/config.json describes no network ({error}); copy the published file again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise QAlignError(f"{path} does not exist; a Q-Align folder holds the files of q-future/one-align")
    try:
        content = read_json(path)
    except DamagedFileError as error:
        raise QAlignError(f"{path} is not JSON ({error.__cause__}); copy the published file again") from error
    if not isinstance(content, dict):
        raise QAlignError(f"{path} holds a {type(content).__name__}, no settings; copy the published file again")
    return content


def _load_tokenizer(path: Path, vocab_size: int) -> SentencePieceProcessor:
    if not path.is_file():
        raise QAlignError(f"{path} does not exist; Q-Align needs the sentencepiece model published with its weights")
    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise QAlignError(f"{path} is not a sentencepiece model; copy the published file again") from error
    if tokenizer.vocab_size() > vocab_size:
        raise QAlignError(
            f"{path} has {tokenizer.vocab_size()} tokens, config.json says {vocab_size}; copy both files again"
        )
    return tokenizer


def _load_preprocessor(path: Path, image_size: int) -> Preprocessor:
    content = _read_json(path)
    size = content.get("size", image_size)
    size = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if size != image_size:
        raise QAlignError(
            f"{path} resizes to {size}, the vision model of config.json takes {image_size}; copy both files again"
        )
    return Preprocessor(size, tuple(content.get("image_mean", CLIP_MEAN)), tuple(content.get("image_std", CLIP_STD)))
