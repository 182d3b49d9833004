"""Trains every model of the small world from nothing: the judges, the encoders, the base transformer and the adapter.

The order of one long evening on two cores: world -> {VAE | judges, text, audio} -> latents of drawn clips -> base
text-to-video -> audio adapter. Each part goes on where it was killed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.executors import ExecutorConfig
from common.runs import RunFolder
from latents.job import LatentsConfig, encode_clips
from miniature.figure import Framing
from miniature.world import HELD_OUT_SEED, draw_clip

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 49 / 25
_HALF_BODY_EVERY = 5


def drawn_rows(count: int, split: str, first_seed: int = 0) -> list[dict[str, Any]]:
    """Clip rows, as curation would hand them on, for `count` clips that are drawn when they are read.

    Every fifth is half a body; `split` "val" takes held-out seeds.
    """
    start = HELD_OUT_SEED + first_seed if split == "val" else first_seed
    return [_row(seed, "half" if seed % _HALF_BODY_EVERY == 0 else "face", split) for seed in range(start, start + count)]


def _row(seed: int, framing: Framing, split: str) -> dict[str, Any]:
    name = f"drawn_{framing}_{seed:07d}"
    caption = draw_clip(seed, 0.04, framing).caption
    return {
        "clip_id": name, "video_id": name, "split": split, "caption": caption, "sha256": name,
        "seed": seed, "framing": framing,
    }  # fmt: skip


def read_drawn(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the clip of a row: frames (49, H, W, 3) uint8 RGB and its sound at 16 kHz."""
    clip = draw_clip(row["seed"], WINDOW_SECONDS, row["framing"])
    return clip.frames, clip.audio


def encode_drawn(run: RunFolder, models: Mapping[str, Path], train: int, val: int) -> None:
    """Shards of `train` + `val` drawn clips in `run.shards`, on all cores."""
    rows = drawn_rows(train, "train") + drawn_rows(val, "val")
    config = LatentsConfig(buckets=((64, 64), (96, 96)), samples_per_shard=512)
    encode_clips(config, rows, models, run, ExecutorConfig(), read=read_drawn)
