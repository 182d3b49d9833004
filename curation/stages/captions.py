"""What is seen? The caption that came with the video, else a captioning model's, else the recipe's words."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.constants import FPS
from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.video import read_frames
from curation.config import CaptionConfig
from perception.captions import Captioner, load_captioner


def caption_fields(config: CaptionConfig, source: Mapping[str, Any], captioner: bool = False) -> dict[str, Any]:
    """Clip fields caption and caption_model before any model is asked: "sidecar", or "recipe" unless a `captioner` is
    going to write it; null when there is neither."""
    if source["caption"]:
        return {"caption": source["caption"], "caption_model": "sidecar"}
    if config.default and not captioner:
        return {"caption": config.default, "caption_model": "recipe"}
    return {"caption": None, "caption_model": None}


def captions_stage(config: CaptionConfig, folder: Path, model: Path, model_hash: str) -> Stage:
    """The stage over cut clip rows that have no caption yet.

    Outputs: clip fields caption, caption_model (folder and the hash of its files), caption_prompt, caption_decoding.
    """
    params = {name: value for name, value in asdict(config).items() if name != "default"}
    make = partial(_make, config, folder, model, model_hash)
    reads = ("unit", "source_sha256", "t_start", "t_end", "crop", "size")
    return Stage("captions", "1", params, {"captioner": model_hash}, make, reads=reads)


def _make(config: CaptionConfig, folder: Path, model: Path, model_hash: str) -> Callable[[dict[str, Any]], Outcome]:
    torch.set_num_threads(1)  # the executor's processes are the parallelism
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(write_caption, config, folder, load_captioner(model, device), model_hash)


def write_caption(
    config: CaptionConfig, folder: Path, captioner: Captioner, model_hash: str, row: dict[str, Any]
) -> Outcome:
    """Ask the captioner about a clip; an empty answer leaves the caption null, and the clip pending."""
    numbers = np.linspace(0, round(row["duration"] * FPS) - 1, config.frames).astype(int).tolist()
    frames = list(read_frames(folder / f"{row['unit']}.mp4", numbers))
    text = captioner.describe(frames, config.prompt, config.max_tokens)
    fields = {
        "caption": text or None,
        "caption_model": f"{captioner.name}@{model_hash[:12]}",
        "caption_prompt": config.prompt,
        "caption_decoding": f"greedy, at most {config.max_tokens} tokens, {config.frames} frames",
    }
    return Outcome(row["unit"], "kept", outputs=fields)
